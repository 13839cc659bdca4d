"""Export a network as ONNX and `torch.export` files, read each back and compare it."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import onnxruntime
import torch
from torch import Tensor, nn

from ofav2.deploy.agreement import require_same
from ofav2.deploy.artifact import ExportRecord
from ofav2.errors import RunError, UserError
from ofav2.messages import refuse_text
from supernets.outputs import exit_logits

PROGRAM = "model.pt2"
ONNX = "model.onnx"
USAGE = "usage.json"
"""Name of the file inside `model.pt2` that says how the network is used; `model.onnx` has its values as metadata."""
INPUT = "images"
"""Name of the ONNX file's input: normalised images (N, C, H, W), float32, N free."""

Format = Literal["onnx", "pt2", "card"]
"""A file beside weights and description: `model.onnx`, `model.pt2`, `model_card.md`."""
FORMATS: tuple[Format, ...] = get_args(Format)

Form = Callable[[Tensor], Sequence[Tensor]]
"""A network in some form: images (N, C, H, W) -> logits (N, classes) per exit."""


def output_names(exits: Sequence[int], *, single: bool, ensemble: bool = False) -> tuple[str, ...]:
    """Names of the ONNX file's outputs: `logits`, or `exit_2`, `exit_4`, … for a network that returns several.

    Args:
        exits: The exits, by number.
        single: Whether the network returns one tensor.
        ensemble: Whether the exits' ensemble is returned as well, as `logits`.
    """
    if single:
        return ("logits",)
    return (*(f"exit_{exit}" for exit in exits), *(("logits",) if ensemble else ()))


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that does not exist.

    Raises:
        UserError: Naming it, and those that exist.
    """
    refuse_text("formats", formats)
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"formats ({name}): must be out of {', '.join(FORMATS)}, or none; leave it out for all")


def write_exports(
    module: nn.Module, images: Tensor, usage: Mapping[str, Any], folder: Path, formats: Sequence[str] = FORMATS
) -> ExportRecord:
    """Write `model.pt2` and `model.onnx`, read each back, and compare its logits with the network's.

    Both take any number of images of this size; they are compared with one image and with all.

    Args:
        module: A plain network in evaluation mode.
        images: Real, normalised images (N, C, H, W).
        usage: How it is used, as `artifact.usage` has it, with the outputs' names; both files hold it.
        folder: Where to write.
        formats: Which of `FORMATS` to write.

    Returns:
        How they compare with the network.

    Raises:
        RunError: If a file can't be made, or does not compute what the network does.
    """
    # Files must not depend on the device or the memory layout that the network was evaluated with.
    plain = copy.deepcopy(module).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain.requires_grad_(False).eval()
    images = images.cpu().contiguous()
    with _quiet():
        forms = _write_forms(plain, images, usage, folder, formats)
        batches = (images[:1], images) if forms else ()
        gaps = {
            name: max(require_same(form(batch), exit_logits(plain(batch)), name) for batch in batches)
            for name, form in forms.items()
        }
    return ExportRecord(tuple(usage["outputs"]), tuple(len(batch) for batch in batches), gaps)


def _write_forms(
    module: nn.Module, images: Tensor, usage: Mapping[str, Any], folder: Path, formats: Sequence[str]
) -> dict[str, Form]:
    forms: dict[str, Form] = {}
    if {"pt2", "onnx"}.isdisjoint(formats):
        return forms
    program = _exported(module, images)
    if "pt2" in formats:
        torch.export.save(program, folder / PROGRAM, extra_files={USAGE: json.dumps(usage)})
        forms[PROGRAM] = _program(folder / PROGRAM)
    if "onnx" in formats:
        _write_onnx(program, usage, folder / ONNX)
        forms[ONNX] = _onnx(folder / ONNX)
    return forms


def _exported(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    # A batch of one would be taken for a constant.
    sample = images if len(images) > 1 else images.repeat(2, 1, 1, 1)
    return torch.export.export(module, (sample,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _write_onnx(program: torch.export.ExportedProgram, usage: Mapping[str, Any], path: Path) -> None:
    try:
        written = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(usage["outputs"]), verbose=False
        )
    except (ImportError, torch.onnx.OnnxExporterError) as error:
        raise RunError(
            f"{path.name} cannot be made ({type(error).__name__}): install the versions of onnx, onnxscript and torch"
            " that constraints.txt names"
        ) from error
    assert written is not None, "without a file, torch returns the program"
    # ONNX holds text alone.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in usage.items()}
    written.model.metadata_props.update(texts)
    written.save(path)


def _program(path: Path) -> Form:
    loaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: exit_logits(loaded(images))


def _onnx(path: Path) -> Form:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(found) for found in session.run(None, {INPUT: images.numpy()})]


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporters warn of their own inner workings, which no user can change; what matters is compared afterwards.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
