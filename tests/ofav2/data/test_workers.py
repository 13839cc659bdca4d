"""Worker processes that load images outlive the signals that their whole process group gets."""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, eval_batches, open_data, train_batches
from ofav2.rng import Stream
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, as images that are decoded already are not loaded by workers."""
    root = tmp_path_factory.mktemp("images")
    write_classes(root, {"cat": 40, "dog": 40})
    return root


@pytest.fixture(scope="module")
def images(folder: Path) -> ImageData:
    return open_data(DataConfig("imagefolder", str(folder)))


def send(number: signal.Signals) -> int:
    """Sends a signal to all workers, from another process (what this one sends, they obey); tells how many."""
    workers = multiprocessing.active_children()
    for worker in workers:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    return len(workers)


def batches(images: ImageData, workers: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    config = tiny.data_config(workers=workers)
    return [
        list(train_batches(images, config, Stream(0, "full"), range(6))),
        list(eval_batches(images.train, resolution=16, eval_crop=1.0, batch_size=5, workers=workers)),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_finish_what_the_last_step_needs(images: ImageData, number: signal.Signals) -> None:
    config = tiny.data_config(workers=2)
    found, told = [], 0
    for batch in train_batches(images, config, Stream(0, "full"), range(6)):
        # From the first moment on, in which a worker has just been forked.
        told += send(number)
        found.append(batch)
    expected, _ = batches(images, workers=0)
    assert told >= 2
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, expected, strict=True))
    assert not multiprocessing.active_children(), "workers end with the loader"


def test_workers_take_no_signal_from_their_first_moment_on(images: ImageData) -> None:
    config = tiny.data_config(workers=2)
    for _ in range(5):
        loading = iter(train_batches(images, config, Stream(0, "full"), range(2)).loader)
        assert send(signal.SIGTERM) == 2
        assert len(list(loading)) == 2


def test_the_training_process_takes_signals_as_before(images: ImageData) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches(images, workers=1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


LEAVING = """\
import sys
from ofav2.config.schema import DataConfig
from ofav2.data import open_data, train_batches
from ofav2.rng import Stream
from tests.ofav2 import tiny

images = open_data(DataConfig("imagefolder", sys.argv[1]))
loading = iter(train_batches(images, tiny.data_config(workers=2), Stream(0, "full"), range(6)))
next(loading)
kept = [loading]
kept.append(kept)  # what only Python's very end takes apart
"""


@pytest.mark.slow
def test_a_process_with_an_open_loader_can_end(folder: Path) -> None:
    command = [sys.executable, "-c", LEAVING, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_workers_end_when_the_training_process_asks_them_to(images: ImageData) -> None:
    loading = iter(train_batches(images, tiny.data_config(workers=2), Stream(0, "full"), range(6)))
    next(loading)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
        worker.join(timeout=60)
        assert worker.exitcode == 0


def test_decoded_images_need_no_workers() -> None:
    for _ in train_batches(tiny.tiny_data(), tiny.data_config(workers=2), Stream(0, "full"), range(2)):
        assert not multiprocessing.active_children()
