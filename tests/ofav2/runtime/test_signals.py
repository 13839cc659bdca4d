"""The first signal requests a stop, the second one ends; and afterwards signals mean what they meant before."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ofav2.runtime.signals import interruptible, stop_requests

SIGNALS = (signal.SIGTERM, signal.SIGINT)

WAIT = """
import signal, sys, time
from ofav2.runtime.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("requested", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Signals that a test sets are put back, and none may end the test process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert stop(), "one request is enough"
    assert capfd.readouterr().err == f"{number.name}: saving after this step, then exiting; once more exits at once\n"


@pytest.mark.parametrize("first", SIGNALS)
def test_after_the_first_signal_the_next_one_of_either_kind_ends(first: signal.Signals) -> None:
    with stop_requests():
        signal.raise_signal(first)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("requested", [False, True])
def test_signals_mean_afterwards_what_they_meant_before(requested: bool) -> None:
    def handler(*_: object) -> None: ...

    def run() -> None:
        with stop_requests() as stop:
            if requested:
                signal.raise_signal(signal.SIGTERM)
            assert stop() is requested
            raise ZeroDivisionError

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(ZeroDivisionError):
        run()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_runs_after_another_are_stopped_separately() -> None:
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    with stop_requests() as stop:
        assert not stop()


def test_outside_the_main_thread_nothing_is_listened_to() -> None:
    found = []

    def listen() -> None:
        before = [signal.getsignal(number) for number in SIGNALS]
        with stop_requests() as stop:
            found.append(stop())
            found.append([signal.getsignal(number) for number in SIGNALS] == before)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False, True]


def test_a_signal_in_the_middle_of_a_message_does_no_harm() -> None:
    """Python's streams raise when a signal's handler writes to what the interrupted code is writing to."""

    class Stream:
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGTERM)
            return len(text)

        def flush(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch, stop_requests() as stop:
        patch.setattr(sys, "stderr", Stream())
        sys.stderr.write("loss")
        assert stop()


def test_a_closed_stream_does_no_harm() -> None:
    kept = os.dup(2)
    try:
        os.close(2)
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop()
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_two_signals_end_a_process_that_hangs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "requested\n"
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS)
def test_either_signal_interrupts_what_is_interruptible(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_thread_that_takes_no_signals_is_interruptible_by_none() -> None:
    entered = threading.Event()

    def body() -> None:
        with interruptible():
            entered.set()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert entered.is_set()
