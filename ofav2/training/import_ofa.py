"""Import an official OFA MobileNetV3 checkpoint as a run folder.

The original supernet is this project's SE_B (OFA, Cai et al., ICLR 2020). Its tensors say how wide it is, how many
classes and which kernels it has; which smaller depths and expansion ratios it was trained with they do not say, and the
recipe does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import supernets
from distill.state_files import is_plain, read_torch_file
from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import Config, NetworkConfig, PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.data import ImageData, refuse_inside, split_record, write_split
from ofav2.errors import UserError
from ofav2.networks.build import supernet_options
from ofav2.output_folder import making
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import ImportedWeights, PhaseRecord, Run, RunRecord, TeacherRecord, write_run
from ofav2.training.setup import Setup, prepare, record_now
from supernets import SpaceError

VARIANT = "se_b"
STEM_STRIDE = 2
"""Stride of OFA's stem."""
PHASE = "imported"
"""Name of the one phase that an imported run has."""


def import_ofa(path: str | Path, recipe_name: str | Path, overrides: Sequence[str] = (), *, out: str | Path) -> Run:
    """Make a run folder out of an official OFA MobileNetV3 checkpoint.

    Args:
        path: The checkpoint, as `torch.save` wrote it: a state dict, or a mapping with one under `state_dict`. It is
            read without running code.
        recipe_name: A recipe that names the data it was trained on; of its supernet, only the choices of depth and
            expansion ratio are taken. Its phases are replaced by one, `imported`.
        overrides: Settings to change, as `key=value`.
        out: The run folder to make; it must not exist, or be empty.

    Returns:
        The run.

    Raises:
        UserError: If the checkpoint can't be read, is another network's, or does not go with recipe and data.
    """
    source, target = Path(path), Path(out)
    with making(target, folder.RECORD) as staging:
        state = _read(source)
        try:
            found = supernets.infer_ofa_options(state)
            config = _fitted(recipe.load(recipe_name, overrides), found, source)
            _check_shapes(config, found, state)
            setup = prepare(config)
            refuse_inside(setup.data.trees, target, "output folder")
            _check_data(setup.data, found, source)
            assert isinstance(setup.net, supernets.Supernet)
            supernets.load_ofa_state_dict(setup.net, state)
        except SpaceError as error:
            raise UserError(f"checkpoint ({source}): {error}") from error
        files.write_text(staging / folder.RECIPE, recipe.dump(config))
        files.write_text(staging / folder.METRICS, "")
        write_split(staging / folder.SPLIT, split_record(setup.data))
        described = {"phase": PHASE, "steps": 0}
        sha256 = checkpoint.save(folder.checkpoint_path(staging, PHASE), setup.net.state_dict(), described)
        record = _describe(target.resolve().name, setup, source, sha256)
        write_run(staging, record)
    return Run(target, record)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"checkpoint ({path}) can't be read ({error.strerror}): check the path") from error
    if not is_file:
        raise UserError(f"checkpoint ({path}) must be a file, and there is none: check the path")
    try:
        content = read_torch_file(path)
    except Exception as error:
        # Damaged bytes make the reader fail in every way there is; refused code ends here too, and what torch says to
        # it is how to run that code after all, which must not reach the user.
        raise UserError(
            f"checkpoint ({path}) can't be read ({type(error).__name__}), because it is damaged or holds more than"
            " plain weights: give an official OFA checkpoint, or save the supernet's state_dict() alone"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"checkpoint ({path}) holds no state dict: save the supernet's state_dict()")
    for name, tensor in state.items():
        if not (is_plain(tensor) and bool(tensor.isfinite().all())):
            raise UserError(
                f"checkpoint ({path}) must hold plain tensors with finite values only, which {str(name)[:80]!r} is not:"
                " save the supernet's state_dict()"
            )
    return state


def _check_shapes(config: Config, found: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Compare all tensors with the supernet that some of them tell of, before it takes memory.

    Raises:
        SpaceError: One does not fit.
    """
    options = supernet_options(config, outputs=found["num_classes"], channels=found["in_channels"])
    with torch.device("meta"):
        supernets.load_ofa_state_dict(supernets.create(VARIANT, **options), state)


def _fitted(config: Config, found: Mapping[str, Any], source: Path) -> Config:
    """Return the recipe with the checkpoint's supernet, and one phase that unlocks all of it."""
    given = config.supernet
    for name in ("expand", "depth"):
        (largest,), chosen = found[name], getattr(given, name)
        if max(chosen) != largest:
            raise UserError(
                f"supernet.{name} ({', '.join(map(str, chosen))}): the largest of checkpoint {source} is {largest};"
                f" give the choices that it was trained with, such as supernet.{name}=[...,{largest}]"
            )
    if min(config.data.resolutions) < 2**5:
        raise UserError(
            f"data.resolutions ({', '.join(map(str, config.data.resolutions))}): OFA's network needs 32 pixels or more;"
            " set those it was trained with, such as data.resolutions=[160,176,192,208,224]"
        )
    supernet = replace(
        given,
        variant=VARIANT,
        width_mult=found["width_mult"],
        kernel=found["kernel"],
        stem_stride=STEM_STRIDE,
        # All weights are the checkpoint's.
        init=None,
        frozen=False,
    )
    choices = {name: getattr(supernet, name) for name in ("kernel", "expand", "depth")}
    unlock = UnlockConfig(**{name: values for name, values in choices.items() if len(values) > 1})
    # Fine-tuning begins with the rate of the last phase, which is the recipe's here.
    lr = [phase.lr for phase in config.phases.values()][-1]
    phase = PhaseConfig(epochs=1.0, lr=lr, unlock=unlock, teacher="none")
    teacher = TeacherConfig(policy="none")
    return replace(config, network=NetworkConfig(), supernet=supernet, phases={PHASE: phase}, teacher=teacher)


def _check_data(data: ImageData, found: Mapping[str, Any], source: Path) -> None:
    for what, own, there in (
        ("classes", found["num_classes"], len(data.classes)),
        ("channels", found["in_channels"], data.channels),
    ):
        if own != there:
            raise UserError(
                f"checkpoint ({source}) has {own} {what} and the data set {data.name} {there}:"
                " name the data that it was trained on, with another recipe or data.name=NAME"
            )


def _describe(name: str, setup: Setup, source: Path, sha256: str) -> RunRecord:
    """Return the record of a run whose one checkpoint has this checksum."""
    phase = PhaseRecord(
        name=PHASE,
        space=setup.net.space,
        steps=0,
        end=0,
        teacher=TeacherRecord("none"),
        ensemble_score=None,
        mean_corner_score=None,
        metrics_bytes=0,
        sha256=sha256,
    )
    imported = ImportedWeights(source.name, files.sha256(source))
    return replace(
        record_now(name, recipe.dump(setup.config), setup), status="finished", imported=imported, phases=(phase,)
    )
