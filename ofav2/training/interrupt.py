"""Requests to stop: the first SIGTERM or SIGINT lets the running step end and its state be saved, the second kills."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ofav2 import console


class Stopped(Exception):
    """The run was asked to stop, has saved its state and can be resumed."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Listens for SIGTERM and SIGINT while the body runs.

    Yields:
        A function that tells whether to stop. Outside the main thread, where Python takes no signals, it never does.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.say(f"{signal.Signals(number).name}: saving after this step, then leaving; once more leaves at once")

    try:
        for number in before:
            signal.signal(number, ask)
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
