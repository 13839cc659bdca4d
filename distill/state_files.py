"""Read files that `torch.save` wrote, without running code from them and without trusting their sizes."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor


def read_torch_file(path: Path) -> object:
    """Return what `torch.save` wrote into a file, on the CPU, made of plain weights alone.

    Raises:
        Exception: The file is damaged, holds code, or is compressed; every kind there is, as readers fail so.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        # torch stores tensors as they are. It unpacks what somebody else compressed, a thousandfold if need be.
        if unpacked > path.stat().st_size:
            raise ValueError("compressed")
    return torch.load(path, map_location="cpu", weights_only=True)


def is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor of real numbers, with a place in memory for each of them."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_meta or value.is_nested)
        # A file of a few bytes can hold one number that stands for gigabytes of equal ones.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
