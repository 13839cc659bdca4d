"""Worker processes that load images outlive the signals that their whole process group gets."""

import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest
import torch

from ofav2.data import eval_batches, train_batches
from tests.ofav2 import tiny

DATA = tiny.tiny_data()


def batches(workers: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    config = tiny.data_config(workers=workers)
    return [
        list(train_batches(DATA, config, seed=0, phase="full", steps=6)),
        list(eval_batches(DATA.train, resolution=16, eval_crop=1.0, batch_size=5, workers=workers)),
    ]


@pytest.fixture
def _deaf() -> Iterator[None]:
    """Signals to the group reach this process too, which is to live on."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_deaf")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_finish_what_the_last_step_needs(number: signal.Signals) -> None:
    config = tiny.data_config(workers=2)
    found = []
    for batch in train_batches(DATA, config, seed=0, phase="full", steps=6):
        # From the first moment on, in which a worker has just been forked.
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, number)
        found.append(batch)
    expected, _ = batches(workers=0)
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, expected, strict=True))
    assert not multiprocessing.active_children(), "workers end with the loader"


@pytest.mark.usefixtures("_deaf")
def test_workers_take_no_signal_from_their_first_moment_on() -> None:
    config = tiny.data_config(workers=2)
    for _ in range(5):
        loading = iter(train_batches(DATA, config, seed=0, phase="full", steps=2))
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGTERM)
        assert len(list(loading)) == 2


def test_the_training_process_takes_signals_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches(workers=1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
