"""Save and load checkpoints: tensors in `<path>.safetensors`, facts in `<path>.json`.

The JSON carries the SHA-256 of both parts, so a damaged file or two halves of different checkpoints are found on
loading. Nothing in either file can run code.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor, nn

from ofav2 import files
from ofav2.errors import RunError
from ofav2.runs.folder import RECORD

FORMAT = "ofav2-checkpoint/1"
MAX_BYTES = 2**36
"""Largest file of tensors that is written or read: the state of an optimiser for four billion weights."""
_BOOKKEEPING = ("format", "sha256", "facts_sha256")


def file_paths(path: Path) -> tuple[Path, Path]:
    """Return the tensor file and the JSON file of the checkpoint at `path` (given without suffix)."""
    return path.with_name(f"{path.name}.safetensors"), path.with_name(f"{path.name}.json")


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Write a checkpoint; both files are complete on the disk before either takes its name.

    A failure leaves the older checkpoint. A crash between the two renamings leaves files that `load` refuses.

    Args:
        path: Where, without suffix; its folder is made where it is missing.
        tensors: Tensors of any shape, layout and device; views and shared storage are stored as separate copies.
        facts: What JSON can hold. The keys `format`, `sha256` and `facts_sha256` are set here.

    Returns:
        The SHA-256 of the tensors' file, which may be kept elsewhere to know the checkpoint again.

    Raises:
        RunError: The files cannot be written.
    """
    data = tensor_bytes(tensors)
    write(path, data, facts)
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, of the bytes that `tensor_bytes` made; see `save`."""
    tensor_file, facts_file = file_paths(path)
    if len(data) > MAX_BYTES:
        raise RunError(
            f"{tensor_file} would have {len(data)} bytes, and more than {MAX_BYTES} are not read back: train a smaller"
            " network"
        )
    own = {key: value for key, value in facts.items() if key not in _BOOKKEEPING}
    record = {
        "format": FORMAT,
        "sha256": hashlib.sha256(data).hexdigest(),
        "facts_sha256": _facts_checksum(own),
        **own,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _make_folder(path.parent)
    # The inner file takes its name first: facts under their name mean that the tensors were there before them.
    with files.replacing(facts_file) as new_facts:
        new_facts.write_text(text, encoding="utf-8")
        with files.replacing(tensor_file) as new_tensors:
            new_tensors.write_bytes(data)


def load(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and verify it.

    Args:
        path: Where, without suffix.
        sha256: The checksum that its tensors' file must have, as `run.json` has it; None takes any that is whole.

    Returns:
        The tensors, contiguous and on the CPU, and the facts with their bookkeeping keys.

    Raises:
        RunError: A file is missing, damaged, foreign, or belongs to another checkpoint.
    """
    tensor_file, facts_file = file_paths(path)
    record = files.read_json(facts_file)
    if record.get("format") != FORMAT:
        raise RunError(
            f"{facts_file}: format ({record.get('format')!r}) must be {FORMAT!r}; "
            "give a checkpoint that this version of ofav2 wrote"
        )
    own = {key: value for key, value in record.items() if key not in _BOOKKEEPING}
    if record.get("facts_sha256") != _facts_checksum(own):
        raise RunError(f"{facts_file} was changed after it was saved (checksum differs); restore it or train again")
    if sha256 is not None and record.get("sha256") != sha256:
        raise RunError(
            f"{tensor_file} is not the one that {RECORD} names, but another run's or another time's (checksum differs);"
            " restore it or train again"
        )
    return read_tensors(tensor_file, record.get("sha256"), facts_file.name), record


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file with copies of these tensors."""
    return serialise_tensors({name: _plain_copy(tensor) for name, tensor in tensors.items()})


def networks_sha256(networks: Iterable[nn.Module]) -> str:
    """Return the checksum of networks' tensors, in their order."""
    digest = hashlib.sha256()
    for net in networks:
        digest.update(tensor_bytes(net.state_dict()))
    return digest.hexdigest()


def read_tensors(path: Path, sha256: object, described_in: str) -> dict[str, Tensor]:
    """Read a safetensors file and verify it.

    Args:
        path: The file.
        sha256: The checksum that it must have, in hexadecimal.
        described_in: Name of the file that says so.

    Returns:
        The tensors, contiguous and on the CPU.

    Raises:
        RunError: The file is missing, damaged or another one.
    """
    data = _read(path)
    if sha256 != hashlib.sha256(data).hexdigest():
        raise RunError(
            f"{path} is damaged or not the one saved with {described_in} (checksum differs); "
            "restore both files or make them again"
        )
    try:
        return parse_tensors(data)
    except (SafetensorError, LookupError, RuntimeError, ValueError) as error:
        # The type of a tensor may be one that torch has not, which safetensors finds out by itself only now.
        raise RunError(f"{path} holds no tensors ({error}); restore it or make it again") from error


def require_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that tensors have the names, shapes and types of others.

    Args:
        expected: What they have to be like.
        tensors: The tensors.
        where: The files they were read from.

    Raises:
        RunError: Naming the first one that differs.
    """
    for name in dict.fromkeys([*expected, *tensors]):
        needed, found = _kind(expected.get(name)), _kind(tensors.get(name))
        if needed != found:
            raise RunError(
                f"weights in {where} do not fit the network ({name[:100]!r} is {found} and must be {needed}):"
                " restore the files, or make them again"
            )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the tensors of a file into a module; nothing is changed if they do not fit.

    A record may describe a network of any size. A module on the meta device, which has shapes and no memory, gets its
    memory here, on the CPU, once there are tensors of that size. All its state must be in its state dict.

    Raises:
        RunError: Naming the first tensor that does not fit.
    """
    state = module.state_dict()
    require_fit(state, tensors, where)
    if any(tensor.is_meta for tensor in state.values()):
        module.to_empty(device="cpu")
    module.load_state_dict(dict(tensors))


def _kind(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _plain_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _facts_checksum(facts: Mapping[str, Any]) -> str:
    # Through JSON once, since only there tuples are lists and all keys are text, as they are when the file is read.
    canonical = json.dumps(json.loads(json.dumps(facts, allow_nan=False)), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be made ({error.strerror}); give a folder that you may write to") from error


def _read(path: Path) -> bytes:
    try:
        return files.read_bytes(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; restore it or train again") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check that it is a file you may read") from error
