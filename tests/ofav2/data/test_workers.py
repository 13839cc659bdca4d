"""Worker processes that load images outlive the signals that their whole process group gets."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
import torch

from ofav2.data import eval_batches, train_batches
from tests.ofav2 import tiny

DATA = tiny.tiny_data()


def send(number: signal.Signals) -> None:
    """Sends a signal to all workers, from another process: what this one sends, they obey."""
    for worker in multiprocessing.active_children():
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)


def batches(workers: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    config = tiny.data_config(workers=workers)
    return [
        list(train_batches(DATA, config, seed=0, phase="full", steps=6)),
        list(eval_batches(DATA.train, resolution=16, eval_crop=1.0, batch_size=5, workers=workers)),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_finish_what_the_last_step_needs(number: signal.Signals) -> None:
    config = tiny.data_config(workers=2)
    found = []
    for batch in train_batches(DATA, config, seed=0, phase="full", steps=6):
        # From the first moment on, in which a worker has just been forked.
        send(number)
        found.append(batch)
    expected, _ = batches(workers=0)
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, expected, strict=True))
    assert not multiprocessing.active_children(), "workers end with the loader"


def test_workers_take_no_signal_from_their_first_moment_on() -> None:
    config = tiny.data_config(workers=2)
    for _ in range(5):
        loading = iter(train_batches(DATA, config, seed=0, phase="full", steps=2))
        send(signal.SIGTERM)
        assert len(list(loading)) == 2


def test_the_training_process_takes_signals_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches(workers=1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


LEAVING = """\
from ofav2.data import train_batches
from tests.ofav2 import tiny

loading = iter(train_batches(tiny.tiny_data(), tiny.data_config(workers=2), seed=0, phase="full", steps=6))
next(loading)
kept = [loading]
kept.append(kept)  # what only Python's very end takes apart
"""


def test_a_process_with_an_open_loader_can_end() -> None:
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_workers_end_when_the_training_process_asks_them_to() -> None:
    loading = iter(train_batches(DATA, tiny.data_config(workers=2), seed=0, phase="full", steps=6))
    next(loading)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
        worker.join(timeout=60)
        assert worker.exitcode == 0
