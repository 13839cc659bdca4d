"""Write arrays whose length is not known before: `.npy` files that grow by appending."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ofav2 import files
from ofav2.data.patches import Array


class ArrayFile:
    """A `.npy` file that grows along its first axis. Its head is written again when it is complete."""

    def __init__(self, file: IO[bytes], like: Array) -> None:
        """Begin a file of items that are like those of an array."""
        self.shape = like.shape[1:]
        self.dtype = like.dtype
        self.count = 0
        self._file = file
        self._file.write(self._head())

    @classmethod
    @contextmanager
    def made(cls, path: Path, like: Array) -> "Iterator[ArrayFile]":
        """Make a file in the body, for items (n, …) like those of an array."""
        files.open_in_place(path, "ab+").close()
        with files.open_in_place(path, "rb+") as file:
            made = cls(file, like)
            yield made
            file.seek(0)
            file.write(made._head())

    def append(self, items: Array) -> None:
        """Append items (n, …)."""
        assert (items.shape[1:], items.dtype) == (self.shape, self.dtype), "items of one shape and type"
        self._file.write(np.ascontiguousarray(items).data)
        self.count += len(items)

    def _head(self) -> bytes:
        """Return the head, which has one length whatever the count: numpy pads it for 21 digits."""
        head = io.BytesIO()
        values: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.count, *self.shape),
        }
        np.lib.format.write_array_header_1_0(head, values)
        return head.getvalue()
