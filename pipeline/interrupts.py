"""Ctrl-C and SIGTERM: they end a run at any point, with the right exit code."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

RESEND_AFTER_S = 0.05

IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file name of Python's import statement in a frame


def set_up() -> None:
    """Exit with EXIT_TERMINATED on SIGTERM, and make sure that no signal is lost or aborts the process.

    Python raises the exception of a signal wherever its main thread is. Inside a finaliser it drops the exception
    with "Exception ignored", and the run would continue; inside the import of an extension module, C++ code may not
    expect it and abort (nanobind does). Such a signal is sent again a moment later.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell makes background jobs ignore it
        signal.signal(signal.SIGINT, _raise_outside_imports)
    signal.signal(signal.SIGTERM, _raise_outside_imports)
    sys.unraisablehook = _resend_dropped


def settled() -> None:
    """Make sure that the run ends with its exit code, whatever signal arrives from now on.

    A resent Ctrl-C may arrive after the one that ends the run. Besides, CPython (3.11) remembers a Ctrl-C that
    arrived in code compiled from text, such as a dataclass, and ends `python -m` by the signal instead of the exit
    code; running any such code clears that memory (run_eval_code_obj in pythonrun.c).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Python and asyncio report the coroutines, tasks and finalisers that the interrupted work leaves unfinished
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    sys.unraisablehook = _ignore
    exec("")  # noqa: S102


def _ignore(_: object) -> None:
    """Report nothing."""


def _raise_outside_imports(signum: int, frame: FrameType | None) -> None:
    if _importing(frame):
        _resend(signal.Signals(signum))
    elif signum == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(EXIT_TERMINATED)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _resend_dropped(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _resend(signal.SIGINT)
    elif issubclass(dropped.exc_type, SystemExit):
        _resend(signal.SIGTERM)
    else:
        sys.__unraisablehook__(dropped)


def _resend(signum: signal.Signals) -> None:
    timer = threading.Timer(RESEND_AFTER_S, os.kill, [os.getpid(), signum])
    timer.daemon = True
    timer.start()


@contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C from the processes started in this context, and delay it for this process until the context ends.

    A terminal sends Ctrl-C to every process of a command. Processes inherit the signal mask of the thread that starts
    them, so workers started here never receive it, nor do their replacements. The delay lets a cluster finish
    starting, because a half-started one cannot be closed cleanly.
    """
    resource_tracker.ensure_running()  # if started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
