"""Files that claim more than they hold are refused before they take memory."""

import zipfile
from pathlib import Path

import pytest
import torch

from distill.state_files import is_plain, read_torch_file


def compressed(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(source) as stored, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    return target


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saved_comes_back(new: bool, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros((), dtype=torch.int64)}
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_torch_file(tmp_path / "a.pth")
    assert isinstance(found, dict)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pth")
    bomb = compressed(tmp_path / "a.pth", tmp_path / "b.pth")
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(bomb)


def test_plain_tensors_have_a_place_for_every_number() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    for tensor in (whole, whole.T, whole[1:, ::2], whole.half(), torch.zeros(0, 3), torch.tensor(1)):
        assert is_plain(tensor)
    for value in (
        torch.zeros(1).expand(10**6, 10**6),
        whole.to_sparse(),
        whole.to("meta"),
        whole.cfloat(),
        None,
        [1.0],
    ):
        assert not is_plain(value)
