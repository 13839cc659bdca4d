"""Record a run's measurements in `metrics.jsonl`, and mirror them to Weights & Biases and to TensorBoard.

Nothing that goes wrong in a mirror stops a run: the first failure is logged as one warning (by `logging`, under this
module's name), after which that mirror is off for the rest of the run and the local file goes on. A failed artifact
turns off artifacts alone.
"""

import json
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, TextIO

from ofav2.config.schema import TrackingConfig
from ofav2.errors import UserError
from ofav2.runs import folder as run_folder
from ofav2.runs.metrics_file import open_metrics, read_metrics, unwritten

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

Cell = str | float | None

# Seconds that W&B may take to upload what is left at the end; the rest stays in the folder for `wandb sync`.
_FINISH_SECONDS = 120.0

BOARD = "tensorboard"
"""Folder of TensorBoard's files in a run folder."""


class Tracker:
    """Writes one run's measurements; made by `open_tracker`."""

    def __init__(
        self,
        lines: TextIO,
        mirror: "wandb.Run | None" = None,
        *,
        run_id: str | None = None,
        url: str | None = None,
        artifacts: bool = False,
        board: "SummaryWriter | None" = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Take over an open line file and, where they are, a W&B run and TensorBoard's writer."""
        self._lines = lines
        self._mirror = mirror
        self._board = board
        self._steps_per_epoch = steps_per_epoch
        self._mirror_works = mirror is not None
        self._run_id = run_id
        self._url = url
        self._artifacts = artifacts

    @property
    def run_id(self) -> str | None:
        """W&B's id of the run, to resume it by; the id given to `open_tracker` while W&B is off."""
        return self._run_id

    @property
    def url(self) -> str | None:
        """Address of the run's W&B page; None when it has none."""
        return self._url

    def log(self, kind: str, *, global_step: int, phase: str, **metrics: SupportsFloat) -> None:
        """Record metrics at a step.

        W&B and TensorBoard show each as `<kind>/<key>` over `global_step`, all phases in one curve; W&B has `epoch` as
        a second axis, and `phase`. In the file, a number that is not finite is null and its key stands in the list
        `nonfinite`.

        Args:
            kind: What was measured, such as `train` or `validation`.
            global_step: Training steps that the recipe plans up to here. A phase that its patience ends early leaves a
                gap before the next one, which begins where it was planned.
            phase: Name of the phase.
            metrics: Values by name; scalars of numpy and torch too.
        """
        assert not {"time", "nonfinite"} & metrics.keys(), "names of the line's own fields"
        values = {key: _plain_number(number) for key, number in metrics.items()}
        nonfinite = [key for key, value in values.items() if not math.isfinite(value)]
        self._write(
            {"kind": kind, "global_step": global_step, "phase": phase},
            {key: _finite(value) for key, value in values.items()},
            nonfinite,
        )
        keyed = {f"{kind}/{key}": value for key, value in values.items()}
        epoch = {"epoch": global_step / self._steps_per_epoch} if self._steps_per_epoch else {}
        self._reflect(lambda run: run.log({"global_step": global_step, "phase": phase, **epoch, **keyed}))
        self._reflect_on_board(keyed, global_step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Record a table.

        In the file, a number that is not finite is null and its (row index, column) stands in `nonfinite`.

        Args:
            name: Its name, such as `full/corners`.
            columns: Column names.
            rows: Cells, one row per entry, as many as there are columns.
        """
        self._write_table({"kind": "table", "name": name}, columns, rows)
        self._reflect(lambda run: run.log({name: _wandb_table(columns, rows)}))

    def scatter(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], x: str, y: str) -> None:
        """Record a scatter plot of two of a table's columns.

        Args:
            name: The plot's name, and its title in W&B.
            columns: Column names.
            rows: Cells, one row per entry, as many as there are columns.
            x: Column on the horizontal axis.
            y: Column on the vertical axis.
        """
        self._write_table({"kind": "scatter", "name": name, "x": x, "y": y}, columns, rows)
        self._reflect(lambda run: run.log({name: _wandb_scatter(columns, rows, x, y, name)}))

    def artifact(self, paths: Sequence[Path], name: str, type: str) -> None:
        """Upload files to W&B as one artifact, if the recipe has artifacts on; the local file records nothing.

        Args:
            paths: Files that belong together.
            name: The artifact's name, of which W&B gets what it takes; giving it again makes a new version.
            type: Its type, such as `model`.
        """
        if not self._artifacts or self._mirror is None or not self._mirror_works:
            return
        try:
            self._mirror.log_artifact(_wandb_artifact(paths, artifact_name(name), type))
        except Exception as error:
            self._artifacts = False
            _warn(error, "W&B artifacts are")

    def finish(self, exit_code: int = 0) -> None:
        """Close the W&B run; further measurements go to the file alone.

        Args:
            exit_code: 0 for a run that ended well.
        """
        board, self._board = self._board, None
        if board is not None:
            try:
                board.close()
            except Exception as error:
                _warn(error, "TensorBoard is")
        run, self._mirror = self._mirror, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            # A run that failed before was warned of then; closing it is only a courtesy to W&B.
            if self._mirror_works:
                _warn(error)
        self._mirror_works = False

    def _write_table(self, head: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        assert all(len(row) == len(columns) for row in rows), "a cell for every column"
        cells = [[_plain_cell(cell) for cell in row] for row in rows]
        nonfinite = [
            (index, column)
            for index, row in enumerate(cells)
            for column, cell in zip(columns, row, strict=True)
            if _finite(cell) != cell
        ]
        finite = [[_finite(cell) for cell in row] for row in cells]
        self._write(head, {"columns": list(columns), "rows": finite}, nonfinite)

    def _write(self, head: Mapping[str, Any], values: Mapping[str, Any], nonfinite: Sequence[Any]) -> None:
        line = {**head, "time": round(time.time(), 3), **values, **({"nonfinite": nonfinite} if nonfinite else {})}
        try:
            self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as error:
            raise unwritten(error) from error

    def _reflect_on_board(self, values: Mapping[str, float], step: int) -> None:
        if self._board is None:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except Exception as error:
            self._board = None
            _warn(error, "TensorBoard is")

    def _reflect(self, send: "Callable[[wandb.Run], object]") -> None:
        if self._mirror is None or not self._mirror_works:
            return
        try:
            send(self._mirror)
        except Exception as error:
            self._mirror_works = False
            _warn(error)


@contextmanager
def open_tracker(
    folder: Path,
    config: TrackingConfig,
    *,
    name: str,
    recipe: Mapping[str, Any],
    run_id: str | None,
    steps_per_epoch: int | None = None,
) -> Iterator[Tracker]:
    """Track a run for as long as the body runs.

    Lines are appended to the folder's `metrics.jsonl`; what a crash left of an unfinished last line is cut off first.

    Args:
        folder: The run folder.
        config: The recipe's tracking part.
        name: Name of the run in W&B.
        recipe: The resolved recipe as plain values, shown as the run's configuration in W&B.
        run_id: W&B id of the run to go on with; None begins a new one.
        steps_per_epoch: Steps of an epoch, for W&B's axis `epoch`; None leaves that out.

    Yields:
        The tracker; it is finished when the body ends, as failed if it raised.

    Raises:
        RunError: `metrics.jsonl` cannot be written.
        UserError: TensorBoard is wanted and not installed.
    """
    check_tracking(config)
    board = _open_board(folder) if config.tensorboard else None
    with open_metrics(folder) as lines:
        mirror, run_id, url = _start_mirror(folder, config, name, recipe, run_id)
        tracker = Tracker(
            lines,
            mirror,
            run_id=run_id,
            url=url,
            artifacts=config.artifacts,
            board=board,
            steps_per_epoch=steps_per_epoch,
        )
        exit_code = 1
        try:
            yield tracker
            exit_code = 0
        finally:
            tracker.finish(exit_code)
            if mirror is not None and config.mode == "offline":
                _tell_sync(folder, mirror.id)


@contextmanager
def untracked() -> Iterator[Tracker]:
    """Return a tracker that keeps nothing, for those of a run's processes that are not the first.

    Yields:
        The tracker.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        yield Tracker(nowhere)


def check_tracking(config: TrackingConfig) -> None:
    """Check that what a run is to be tracked by is there.

    Raises:
        UserError: TensorBoard is wanted and not installed.
    """
    if not config.tensorboard:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tracking.tensorboard (true): the package tensorboard is not installed; run `pip install tensorboard`, or"
            " leave the key out"
        ) from error


def with_installed(config: TrackingConfig) -> TrackingConfig:
    """Return the settings without TensorBoard where it is not installed, for those who did not choose them."""
    try:
        check_tracking(config)
    except UserError as error:
        _warn(error, "TensorBoard is")
        return replace(config, tensorboard=False)
    return config


def _open_board(folder: Path) -> "SummaryWriter | None":
    """Open TensorBoard's writer; steps that a resumed run takes again replace those that were written before.

    Returns:
        The writer; None where it can't write, of which a warning tells.
    """
    from torch.utils.tensorboard import SummaryWriter

    path = folder / run_folder.METRICS
    steps = [line["global_step"] for line in read_metrics(folder) if "global_step" in line] if path.exists() else []
    try:
        return SummaryWriter(str(folder / BOARD), purge_step=max(steps, default=-1) + 1)
    except Exception as error:
        _warn(error, "TensorBoard is")
        return None


def _tell_sync(folder: Path, run_id: str) -> None:
    """Say how an offline run gets to W&B; one that was resumed has a part per session."""
    parts = [str(path) for path in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))]
    if parts:
        known = ["--id", run_id] if len(parts) > 1 else []
        logging.getLogger(__name__).info(f"to upload to W&B: {shlex.join(['wandb', 'sync', *known, *parts])}")


def _start_mirror(
    folder: Path, config: TrackingConfig, name: str, recipe: Mapping[str, Any], run_id: str | None
) -> "tuple[wandb.Run | None, str | None, str | None]":
    if config.mode == "disabled":
        return None, run_id, None
    try:
        import wandb

        run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            tags=config.tags,
            config=dict(recipe),
            # A resumed run may have been started with other paths or another device.
            allow_val_change=True,
            mode=config.mode,
            dir=folder,
            id=run_id,
            resume="allow",
            # A W&B run that the caller has open is his own.
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=_FINISH_SECONDS, finish_timeout_raises=True
            ),
        )
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        # An offline run has no page, and W&B warns at each access.
        return run, run.id, run.url if config.mode == "online" else None
    except Exception as error:
        _warn(error)
        return None, run_id, None


def artifact_name(name: str) -> str:
    """Return a name as W&B takes it for an artifact: letters, digits, `_`, `.` and `-`, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[-128:]


def _warn(error: Exception, what: str = "W&B is") -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    logging.getLogger(__name__).warning(
        "%s off for the rest of this run (%s); %s goes on", what, reason, run_folder.METRICS
    )


def _wandb_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)


def _wandb_scatter(columns: Sequence[str], rows: Sequence[Sequence[Cell]], x: str, y: str, title: str) -> Any:
    import wandb.plot

    return wandb.plot.scatter(_wandb_table(columns, rows), x, y, title=title)


def _wandb_artifact(paths: Sequence[Path], name: str, type: str) -> "wandb.Artifact":
    import wandb

    artifact = wandb.Artifact(name, type)
    for path in paths:
        artifact.add_file(str(path))
    return artifact


def _plain_cell(cell: Cell) -> Cell:
    return cell if cell is None or isinstance(cell, str) else _plain_number(cell)


def _plain_number(number: SupportsFloat) -> float:
    if isinstance(number, bool):
        return number
    # numpy's whole numbers are `Integral` and no `int`; JSON knows only the latter.
    return int(number) if isinstance(number, Integral) else float(number)


def _finite(value: Cell) -> Cell:
    return None if isinstance(value, float) and not math.isfinite(value) else value
