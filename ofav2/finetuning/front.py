"""Fine-tune all networks of a search's front, and tell for each what that gained.

The networks are taken out and trained one after the other, each into a folder of its own that is made whole or not at
all. So a call that stopped goes on with the first network that is missing, and ends with the same files.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ofav2 import files
from ofav2.data import refuse_inside
from ofav2.deploy.artifact import RECORD, describe_subnet
from ofav2.deploy.export import check_formats
from ofav2.deploy.extract import extract
from ofav2.errors import UserError
from ofav2.evaluation.opened_run import OpenedRun, open_loaded
from ofav2.finetuning.run import finetune
from ofav2.messages import refuse_text, short
from ofav2.nas.found import load_search, load_source
from ofav2.tasks.base import Metric
from ofav2.typed_json import Positive, Sha256, read_record, write_record
from supernets import Subnet

logger = logging.getLogger(__name__)

TUNING, RESULT = "tuning.json", "front.json"
_FORMAT, _RESULT_FORMAT = "ofav2-front-tuning/2", "ofav2-front-tuned/1"
_STEP = "fine-tune the front again into a new folder"

Form = Literal["single", "joint"]
"""How a network is fine-tuned: its own exit alone, or all exits up to it together (AEP)."""
FORMS: tuple[Form, ...] = ("single", "joint")


@dataclass(frozen=True)
class FrontTuning:
    """What is fine-tuned, and how: written before it starts, and kept from the first trained network on."""

    weights: tuple[Sha256, ...]
    """Checksum of the weights of each network's supernet."""
    networks: tuple[Subnet, ...]
    """The front's networks, in its order."""
    forms: tuple[Form, ...]
    """The forms that each is fine-tuned in."""
    settings: tuple[str, ...]
    """Settings that were changed, as `key=value`, and the checksum of the file of settings, if there was one."""
    formats: tuple[str, ...]
    """Files that are written beside weights and description."""


@dataclass(frozen=True)
class TunedNetwork:
    """A network of the front before and after."""

    number: Positive
    """Its number on the front."""
    form: Form
    """How it was fine-tuned."""
    folder: str
    """The folder of the fine-tuned network, within that of the front."""
    subnet: Subnet
    """The network."""
    params: Positive
    """Parameters, with all exits that are kept."""
    macs: Positive
    """Multiply-adds of an image, with all exits that are kept."""
    epochs: int
    """Epochs that were found to be best."""
    before: float | None
    """The metric of its last exit on test, as the supernet left it; None of other images."""
    after: float
    """The same after fine-tuning."""


@dataclass(frozen=True)
class TunedFront:
    """A fine-tuned front."""

    metric: Metric
    """What its values are."""
    networks: tuple[TunedNetwork, ...]
    """Its networks, in the front's order."""


def finetune_front(
    search: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    forms: Sequence[Form] = ("single",),
    file: str | Path | None = None,
    formats: Sequence[str] = (),
) -> TunedFront:
    """Fine-tune the networks of a search's front, each as `finetune` does; go on where an earlier call stopped.

    Args:
        search: The folder of a finished search.
        overrides: Settings to change, as `key=value`.
        out: Folder to make, or one that the same call left unfinished.
        forms: `single` trains a network's own exit, `joint` all exits up to it together, weighted by
            `finetune.exit_weights`. For a network that ends at the first exit both are the same: `single`.
        file: Path of a YAML file with settings.
        formats: Which files to write beside weights and description of each network.

    Returns:
        The networks before and after, on test.

    Raises:
        UserError, DistillError: If something given can't be used, the search is not finished, or the folder to make
            holds another fine-tuning.
        RunError: If `search` is no search, or a network fails as in `finetune`.
    """
    check_formats(formats)
    forms = check_forms(forms)
    found, path = load_search(search), Path(out)
    finalists = found.final.finalists
    one_of = {one.run: one for one in finalists}
    runs = {place: open_loaded(load_source(found, one)) for place, one in sorted(one_of.items())}
    for run in runs.values():
        refuse_inside(run.data.trees, path, "output folder")
    networks = tuple(one.subnet for one in finalists)
    settings = (*((f"file {files.sha256(Path(file))}",) if file else ()), *overrides)
    _claim(
        path,
        FrontTuning(
            tuple(found.sources[one.run].weights for one in finalists), networks, tuple(forms), settings, tuple(formats)
        ),
    )
    first = min(found.record.runs[0].architecture.exits)
    work = [
        (number, one, form)
        for number, one in enumerate(finalists, 1)
        for form in (forms if one.subnet.height > first else FORMS[:1])
    ]
    tuned = []
    for index, (number, one, form) in enumerate(work, 1):
        logger.info(f"network {number} ({form}), {index} of {len(work)}: {one.subnet}")
        tuned.append(_tuned(runs[one.run], number, one.subnet, form, path, overrides, file, formats))
    result = TunedFront(found.record.metric, tuple(tuned))
    write_record(path / RESULT, result, _RESULT_FORMAT)
    return result


def check_forms(names: Sequence[str]) -> tuple[Form, ...]:
    """Return forms in their own order, whatever order they are given in.

    Raises:
        UserError: If one is unknown, or given twice, or there is none.
    """
    refuse_text("forms", names)
    if not names or len(set(names)) < len(names) or not set(names) <= set(FORMS):
        raise UserError(f"forms ({short(','.join(names))}) must be single, joint or single,joint")
    return tuple(form for form in FORMS if form in names)


def _claim(path: Path, wanted: FrontTuning) -> None:
    """Write what is going to be done into a new folder, or require that an old one is of the same."""
    if (path / TUNING).exists():
        known = read_record(path / TUNING, FrontTuning, _FORMAT, _STEP)
        # Settings may be corrected until a network has been trained with them.
        corrected = replace(wanted, forms=known.forms, settings=known.settings, formats=known.formats)
        if known != wanted and (known != corrected or any(path.glob(f"*/tuned/{RECORD}"))):
            raise UserError(
                f"output folder ({path}) holds a fine-tuning of another front, or with other settings: give a new one"
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"output folder ({path}) is not empty: give a new one with --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be made ({error.strerror}): give another one") from error
    write_record(path / TUNING, wanted, _FORMAT)


def _tuned(
    run: OpenedRun,
    number: int,
    subnet: Subnet,
    form: Form,
    path: Path,
    overrides: Sequence[str],
    file: str | Path | None,
    formats: Sequence[str],
) -> TunedNetwork:
    taken, done = path / f"{number}-{form}" / "extracted", path / f"{number}-{form}" / "tuned"
    if not (taken / RECORD).exists():
        extract(run, subnet, taken, "all" if form == "joint" else "last", formats=())
    if not (done / RECORD).exists():
        finetune(taken, overrides, out=done, file=file, formats=formats)
    written = describe_subnet(done)
    last = written.finetuning[-1]
    return TunedNetwork(
        number=number,
        form=form,
        folder=done.relative_to(path).as_posix(),
        subnet=subnet,
        params=written.cost.params,
        macs=written.cost.macs,
        epochs=last.epochs,
        before=None if last.test_before is None else last.test_before[subnet.height],
        after=last.test[subnet.height],
    )


TUNED_COLUMNS = ("number", "form", "sub-network", "parameters", "multiply-adds", "epochs", "before", "after", "gain")
"""Columns of `tuned_rows`."""


def tuned_rows(front: TunedFront) -> list[tuple[object, ...]]:
    """Return a row per fine-tuned network."""
    show, rank = front.metric.show, front.metric.rank
    return [
        (
            one.number,
            one.form,
            str(one.subnet),
            f"{one.params:,}",
            f"{one.macs:,}",
            one.epochs,
            show(one.before),
            show(one.after),
            None if one.before is None else show(rank(one.after) - rank(one.before)),
        )
        for one in front.networks
    ]
