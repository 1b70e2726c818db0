"""Where tasks run. The plan does not know, and the bytes do not change."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from upath import UPath

T = TypeVar("T")
R = TypeVar("R")

THIS_PROCESS = "this process"


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of a task, and the address of the worker that it ran on."""

    result: R
    worker: str


class Executor(Protocol):
    """Runs a function over items; use it as a context manager."""

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        ...

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order in which they come; the first error of a task is raised."""
        ...

    def run_attributed(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[Done[R]]:
        """As `run`, with the worker that each result comes from."""
        ...

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` once on each worker there is; return what it gave or raised, by the worker's address."""
        ...

    @property
    def dashboard(self) -> str | None:
        """Address of the page that shows the work, if there is one."""
        ...

    def tell(self, *events: Mapping[str, Any]) -> None:
        """Pass events of `pipeline.monitoring.counters` on to the page that shows the work, if there is one."""
        ...

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Return how many workers were lost and how many tasks given out again since the last beginning, if known."""
        ...

    def series_csv(self) -> bytes | None:
        """Return the series of the page, with the workers and their memory, if there is a page."""
        ...

    def performance_report(self, page: UPath) -> AbstractContextManager[None]:
        """Write what the cluster knows of the work within the context as a page, unless it ends in an error."""
        ...

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, if there is one."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def close(self) -> None:
        """Stop what was started; a later `run` starts it again."""
        ...


class SerialExecutor:
    """Runs tasks one after the other in this process."""

    workers = 1
    dashboard = None

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order of the items."""
        yield from map(function, items)

    def run_attributed(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[Done[R]]:
        """As `run`, with this process as the worker."""
        return (Done(result, THIS_PROCESS) for result in self.run(function, items))

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` here."""
        return {THIS_PROCESS: function()}

    def worker_memory_bytes(self) -> int | None:
        """Return None: there is no limit but the machine's."""
        return None

    def tell(self, *events: Mapping[str, Any]) -> None:
        """Tell nobody: there is no page."""

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Return that nothing was lost."""
        return 0, 0

    def series_csv(self) -> bytes | None:
        """Return None: there is no page."""
        return None

    def performance_report(self, page: UPath) -> AbstractContextManager[None]:  # noqa: ARG002 there is no cluster
        """Write nothing."""
        return nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing was started."""

    def close(self) -> None:
        """Nothing was started."""
