"""What every test may rely on: no network, one thread, no settings of the machine's owner."""

import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.notes import Notes


class NetworkRefusedError(RuntimeError):
    """A test reached for the network."""


def pytest_configure() -> None:
    """Set what libraries read when they are imported or when a child process starts."""
    gc.disable()  # Imports make objects that stay.
    # What runs in the background of a shell script is started with SIGINT ignored, and would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One thread: sums are added in one order, and parallel test runs do not fight for the cores.
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    os.environ["HF_HUB_OFFLINE"] = "1"
    # W&B must work as the tests' recipes say, whoever is logged in here. Its own service process is out of the socket
    # guard's reach, so an unset mode means offline, and the server's address leads nowhere.
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(
        {"WANDB_MODE": "offline", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false"}
    )


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported, which stays: it took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a card where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Notes:
    """What was logged since the last call, a note per line."""
    caplog.set_level(logging.INFO, "ofav2")

    def read() -> str:
        text = "".join(f"{record.getMessage()}\n" for record in caplog.records)
        caplog.clear()
        return text

    return read


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let files reach the disk when the system likes: no test cuts the power, and a tiny run waits for 40 of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse connections and look-ups that leave this machine."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_remote(self.family, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_remote(self.family, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_host(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


def _refuse_remote(family: int, address: Any) -> None:
    if family in (socket.AF_INET, socket.AF_INET6):
        _refuse_host(address[0])


def _refuse_host(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost") or _is_loopback(name):
        return
    raise NetworkRefusedError(f"host ({name}): tests use no network; give the test its own data or a local server")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
