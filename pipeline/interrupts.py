"""Ctrl-C, SIGTERM and SIGHUP: they end a run at any point, with the right exit code."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import NoReturn, TypeVar

EXIT_INTERRUPTED = 128 + signal.SIGINT

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

RESEND_AFTER_S = 0.05
GRACE_S = 2.0
PATIENCE_S = 1.5
"""After Ctrl-C, how long the main thread may take to notice it; then `_watch` ends the run without it."""

SHOW_CURSOR = b"\x1b[?25h"

T = TypeVar("T")

IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file name of Python's import statement in a frame


_arrived = threading.Event()
_signals: list[int] = []
_ending = threading.Lock()

log = logging.getLogger(__name__)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP (the terminal was closed) ends the run; `code` is 128 + the signal's number."""

    code: int

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)


def set_up() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and Terminated on SIGTERM and SIGHUP.

    No signal is lost or aborts the process: Python raises the exception of a signal wherever its main thread is.
    Inside a finaliser it drops the exception with "Exception ignored", and the run would continue; inside the import
    of an extension module, C++ code may not expect it and abort (nanobind does). Such a signal is sent again a moment
    later. A Ctrl-C that cannot be raised within PATIENCE_S ends the process all the same.
    """
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    # the signals are blocked in the new thread: there they would not interrupt what the main thread waits for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    threading.Thread(target=_watch, args=(received, os.dup(2)), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # background jobs ignore SIGINT, and nohup's SIGHUP
            signal.signal(signum, _raise_outside_imports)
    sys.unraisablehook = _resend_dropped


def arrived() -> bool:
    """Whether a signal has ended the run, which now only cleans up."""
    return _arrived.is_set()


def ending() -> BaseException:
    """Return the exception of the signal that has ended the run, which foreign code may have replaced by its own."""
    signum = _signals[-1] if _signals else signal.SIGINT
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated(signum)


def end(signum: signal.Signals) -> NoReturn:
    """Log the last line of a run that a signal has ended, and leave with the signal's exit code."""
    _ending.acquire()  # for good: of the main thread and `_watch` one ends the run
    _ignore_signals()
    if signum == signal.SIGINT:
        log.error("interrupted; the same command continues")
    else:
        log.error("ended by %s; the same command continues", signum.name)
    leave(128 + signum)


def leave(code: int) -> NoReturn:
    """End the process with an exit code at once, and child processes with it.

    Python's own end takes seconds: it waits for threads, for clusters that are half started, and for TensorFlow. It
    also reports what the interrupted work leaves unfinished, and may replace the exit code by the signal (CPython 3.11
    after a Ctrl-C in code compiled from text, such as a dataclass).
    """
    _ignore_signals()
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(code)


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():  # Python allows it there alone
        for signum in ENDING:
            signal.signal(signum, signal.SIG_IGN)


def _watch(received: int, stderr: int) -> None:
    """End the run if the main thread does not notice a Ctrl-C.

    It does not during a step of TensorFlow, which may take minutes, and during its import, which takes seconds and
    redirects the file descriptor of stderr. `received` is a pipe with the numbers of signals, `stderr` a copy of that
    file descriptor.
    """
    while number := os.read(received, 1):
        if number[0] == signal.SIGINT and not _arrived.wait(PATIENCE_S):
            os.dup2(stderr, 2)
            if os.isatty(stderr):
                os.write(stderr, SHOW_CURSOR)  # a progress bar hides it
            end(signal.SIGINT)


def _raise_outside_imports(signum: int, frame: FrameType | None) -> None:
    if _importing(frame):
        _resend(signal.Signals(signum))
        return
    _arrived.set()
    _signals.append(signum)
    raise ending()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _resend_dropped(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _resend(signal.SIGINT)
    elif isinstance(dropped.exc_value, Terminated):
        _resend(signal.Signals(dropped.exc_value.code - 128))
    else:
        sys.__unraisablehook__(dropped)


def _resend(signum: signal.Signals) -> None:
    timer = threading.Timer(RESEND_AFTER_S, os.kill, [os.getpid(), signum])
    timer.daemon = True
    timer.start()


def shielded(start: Callable[[], T], abandon: Callable[[T], None]) -> T:
    """Return the result of `start`, which starts processes that are to receive no signals of a terminal.

    A terminal sends Ctrl-C, and SIGHUP when it is closed, to every process of a command. Processes inherit the signal
    mask of the thread that starts them, so those started here never receive them, nor do their replacements. If a
    signal ends the run meanwhile, `start` is given GRACE_S to end, and `abandon` is called with its result: what is
    half started cannot be stopped in order.
    """
    future = Future[T]()
    try:
        _start_shielded(threading.Thread(target=_fulfil, args=(future, start), daemon=True))
        return future.result()
    except (KeyboardInterrupt, SystemExit):
        with suppress(Exception):
            abandon(future.result(GRACE_S))
        raise


def _start_shielded(thread: threading.Thread) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        _start_resource_tracker()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start the process that deletes the semaphores of this one and of its children when all of them have ended.

    If it is started later, it unblocks SIGINT. `leave` leaves the semaphores to it: children that are just being
    started still need them. It would warn about that; Python passes on its own options for warnings.
    """
    sys.warnoptions.append("ignore:resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def _fulfil(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 it is raised where the result is wanted
        future.set_exception(error)
