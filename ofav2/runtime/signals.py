"""Stop a run on a signal, or when another process is gone.

The first SIGTERM or SIGINT lets the running step end and its state be saved, the second one kills.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_STDERR = 2


class Stopped(Exception):
    """The run was told to stop, has saved its state and can be resumed."""

    def __init__(self, after: str, folder: str = "RUN", verb: str = "train") -> None:
        """Say after what it stopped, in which folder, and which verb goes on with it."""
        super().__init__(after)
        self.folder = folder
        """The run folder, or a search's."""
        self.verb = verb
        """The verb whose `--resume` goes on."""


class Lost(Exception):
    """Another process of the run failed or is gone, and this one can't go on without it."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Listen for SIGTERM and SIGINT while the body runs.

    Yields:
        A function that tells whether to stop. Outside the main thread, where Python takes no signals, it never does.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request_stop(number: int, frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        name = signal.Signals(number).name
        # A signal may come while a stream is being written, and streams take no second writer; nobody has to read it.
        with suppress(OSError):
            os.write(_STDERR, f"{name}: saving after this step, then exiting; once more exits at once\n".encode())

    try:
        for number in before:
            signal.signal(number, request_stop)
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, by KeyboardInterrupt, so that what it has begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
