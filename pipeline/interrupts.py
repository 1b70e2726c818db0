"""Interrupts: Ctrl-C and SIGTERM, which end a run wherever it is."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

AGAIN_AFTER_S = 0.05


def set_up() -> None:
    """Have SIGTERM exit with EXIT_TERMINATED, and neither it nor Ctrl-C be lost in code that cannot raise.

    Python raises a signal's exception wherever its main thread is; inside a finaliser it drops it with "Exception
    ignored", and the run would go on. Such a signal is sent again a moment later.
    """
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _again


def settled() -> None:
    """Let nothing but the exit code end the run from now on.

    A Ctrl-C that was sent again may come after the one that ends the run. And one that fell into code made from text,
    as of a dataclass, would have Python end `python -m` by the signal in place of the exit code; the next such code
    has it forget that (run_eval_code_obj of CPython's pythonrun.c).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exec("")  # noqa: S102


def _terminate(*_: object) -> None:
    sys.exit(EXIT_TERMINATED)


def _again(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _send_again(signal.SIGINT)
    elif issubclass(dropped.exc_type, SystemExit):
        _send_again(signal.SIGTERM)
    else:
        sys.__unraisablehook__(dropped)


def _send_again(signum: signal.Signals) -> None:
    timer = threading.Timer(AGAIN_AFTER_S, os.kill, [os.getpid(), signum])
    timer.daemon = True
    timer.start()


@contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to every process of a command, for this process alone.

    Processes inherit the mask of the thread that starts them, so workers that start here never see it, and neither
    do those that replace them. This process has it when the context ends: a cluster of which half is started cannot
    be closed in peace.
    """
    resource_tracker.ensure_running()  # started later, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
