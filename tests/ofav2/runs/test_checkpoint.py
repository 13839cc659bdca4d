"""Checkpoints come back exactly, or are refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ofav2.errors import RunError
from ofav2.runs import checkpoint, folder

FACTS: dict[str, Any] = {"phase": "kernel", "accuracy": 0.1 + 0.2, "subnet": {"kernel": [3, 5]}, "note": "größe"}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


def saved(path: Path, value: float = 1.0) -> Path:
    checkpoint.save(path, {"weight": torch.full((3, 2), value), "steps": torch.tensor(7)}, FACTS | {"value": value})
    return path


def test_tensors_and_facts_come_back_exactly(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float32": torch.randn(4, 3, generator=generator),
        "float64": torch.randn(2, generator=generator, dtype=torch.float64),
        "bfloat16": torch.randn(5, generator=generator).to(torch.bfloat16),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.randint(0, 255, (16,), generator=generator, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "odd": torch.tensor([float("inf"), -0.0]),
    }
    path = tmp_path / "checkpoints" / "depth1.5"
    checkpoint.save(path, tensors, FACTS)
    loaded, facts = checkpoint.load(path)
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert {key: facts[key] for key in FACTS} == FACTS
    assert facts.keys() - FACTS.keys() == {"format", "sha256", "facts_sha256"}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["depth1.5.json", "depth1.5.safetensors"]
    assert checkpoint.file_paths(path) == (path.parent / "depth1.5.safetensors", path.parent / "depth1.5.json")


def test_views_shared_storage_and_parameters_are_stored_as_they_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    parameter = torch.nn.Parameter(base[:2])
    tensors = {"base": base, "again": base, "slice": base[1:3, ::2], "turned": base.T, "parameter": parameter}
    checkpoint.save(tmp_path / "full", tensors, {})
    loaded, _ = checkpoint.load(tmp_path / "full")
    assert all(same(loaded[name], tensor.detach()) for name, tensor in tensors.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in loaded.values())
    loaded["base"].zero_()
    assert torch.equal(loaded["again"], base)


def test_what_was_loaded_can_be_saved_again(tmp_path: Path) -> None:
    tensors, facts = checkpoint.load(saved(tmp_path / "full"))
    checkpoint.save(tmp_path / "copy", tensors, facts)
    assert checkpoint.load(tmp_path / "copy")[1] == facts
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "full.json").read_bytes()


def test_facts_that_json_changes_load_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "full", {}, {"pair": (1, 2), "by number": {1: "a", 10: "b", 2: "c"}})
    tensors, facts = checkpoint.load(tmp_path / "full")
    assert tensors == {}
    assert facts["pair"] == [1, 2]
    assert facts["by number"] == {"1": "a", "10": "b", "2": "c"}


def test_the_json_names_the_tensor_files_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path / "full")
    facts = json.loads((tmp_path / "full.json").read_text())
    assert facts["format"] == "ofav2-checkpoint/1"
    assert facts["sha256"] == hashlib.sha256((tmp_path / "full.safetensors").read_bytes()).hexdigest()
    assert checkpoint.load(path)[1] == facts


def test_every_flipped_bit_of_the_tensors_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "full")
    file = tmp_path / "full.safetensors"
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
        with pytest.raises(RunError, match="checksum differs"):
            checkpoint.load(path)


def test_every_flipped_bit_of_the_facts_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "full")
    file = tmp_path / "full.json"
    data, facts = file.read_bytes(), checkpoint.load(path)[1]
    found = 0
    for position in range(len(data)):
        for bit in range(8):
            file.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            try:
                assert checkpoint.load(path)[1] == facts
            except RunError:
                found += 1
    # What is left are blanks turned into line breaks and the like.
    assert found > 0.9 * 8 * len(data)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_truncated_and_missing_files_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / "full")
    file = tmp_path / f"full.{suffix}"
    data = file.read_bytes()
    for length in (0, 1, 7, 8, len(data) // 2, len(data) - 2):
        file.write_bytes(data[:length])
        with pytest.raises(RunError, match=f"full.{suffix} ") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(RunError, match=f"full.{suffix} is missing"):
        checkpoint.load(path)
    file.mkdir()
    with pytest.raises(RunError, match=f"full.{suffix} cannot be read"):
        checkpoint.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "alien.safetensors")
    with pytest.raises(RunError, match=r"alien\.json is missing"):
        checkpoint.load(tmp_path / "alien")
    (tmp_path / "alien.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(RunError, match=r"format \(None\) must be 'ofav2-checkpoint/1'"):
        checkpoint.load(tmp_path / "alien")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickled.safetensors")
    saved(tmp_path / "full").with_name("full.json").rename(tmp_path / "pickled.json")
    with pytest.raises(RunError, match="checksum differs"):
        checkpoint.load(tmp_path / "pickled")


def test_a_crash_between_the_two_renamings_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "full", 1.0)
    old_facts = (tmp_path / "full.json").read_bytes()
    saved(tmp_path / "full", 2.0)
    (tmp_path / "full.json").write_bytes(old_facts)
    with pytest.raises(RunError, match=r"not the one saved with full\.json"):
        checkpoint.load(path)


@pytest.mark.parametrize("method", ["write_text", "write_bytes"])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    path = saved(tmp_path / "full", 1.0)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def write_a_little(self: Path, *_: object, **__: object) -> None:
        with self.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, method, write_a_little)
    with pytest.raises(RunError, match="No space left on device"):
        saved(tmp_path / "full", 2.0)
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    assert checkpoint.load(path)[1]["value"] == 1.0


def test_what_would_be_too_large_to_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 500)
    checkpoint.load(save_at(tmp_path / "small", 50))
    with pytest.raises(RunError, match=r"large\.safetensors would have \d+ bytes, and more than 500 are not read back"):
        save_at(tmp_path / "large", 500)
    assert not [*tmp_path.glob("large*")]


def save_at(path: Path, count: int) -> Path:
    checkpoint.save(path, {"weight": torch.zeros(count)}, {})
    return path


def test_facts_that_json_cannot_hold_touch_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "full", {}, {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_phase_has_its_place_in_the_run_folder(tmp_path: Path) -> None:
    path = folder.checkpoint_path(tmp_path, "kernel")
    saved(path)
    assert (tmp_path / "checkpoints" / "kernel.safetensors").is_file()
    assert (tmp_path / "checkpoints" / "kernel.json").is_file()
