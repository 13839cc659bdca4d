"""Read patches in place: each is a sample of MajorTOM's tables, decoded when it is asked for, by whoever asks.

A `.json` file stands where else there is an array of bands, and says where each patch lies. Workers of a training
decode the samples of the batches that they load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ofav2.data.importing.offsets import without_offset
from ofav2.data.importing.parquet import Row, read_sample
from ofav2.data.importing.rasters import Planes, SceneError, planes_of
from ofav2.data.patches import Array, DType
from ofav2.errors import RunError, UserError
from ofav2.typed_json import Positive, read_record, write_record

FORMAT = "ofav2-samples/1"
LINK = "source"
"""Name of the link to the folder of tables."""
AGAIN = "import the tables again with `ofav2 patches majortom`"


@dataclass(frozen=True)
class Sample:
    """A patch that lies in a table."""

    table: str
    """Path of the table below the folder that `LINK` leads to."""
    at: Row
    """Where the sample lies in it."""
    subtracted: int
    """What is subtracted from its bands, see `without_offset`."""


@dataclass(frozen=True)
class SampleList:
    """What the file holds: patches, and how they are decoded."""

    bands: tuple[str, ...]
    """Names of the bands, which are columns of the tables."""
    side: tuple[Positive, Positive]
    """Height and width of the patches in pixels: the upper left part of a sample."""
    dtype: DType
    """Type of the bands."""
    nodata: float | None
    """The value of a pixel without data."""
    samples: tuple[Sample, ...]
    """The patches, in their order."""
    digests: Mapping[str, str]
    """What the content of each table was, by its path: masks and places are those of these rows."""

    def tables(self) -> list[str]:
        """Return the paths of the tables, relative to the folder of the list, each once."""
        return sorted({f"{LINK}/{sample.table}" for sample in self.samples})

    def require_same(self, digests: Mapping[str, bytes]) -> None:
        """Refuse tables that are others now.

        Args:
            digests: What the content of each of `tables()` is.

        Raises:
            UserError: One has other content than when it was listed.
        """
        for table in self.tables():
            if digests[table].hex() != self.digests.get(table.removeprefix(f"{LINK}/")):
                raise UserError(f"table {table}: has other content than when it was listed; restore it, or {AGAIN}")


def write_samples(path: Path, listed: SampleList) -> None:
    """Write a list of samples."""
    write_record(path, listed, FORMAT)


def read_samples(path: Path) -> SampleList:
    """Read a list of samples.

    Raises:
        UserError: It can't be read, is malformed, or names a table outside of the linked folder.
    """
    try:
        listed = read_record(path, SampleList, FORMAT, AGAIN)
    except RunError as error:
        raise UserError(str(error)) from error
    for sample in listed.samples:
        if Path(sample.table).is_absolute() or ".." in Path(sample.table).parts or not sample.table.isprintable():
            raise UserError(f"file {path}: table {sample.table!r} must be a path below {LINK}; {AGAIN}")
    if not listed.samples:
        raise UserError(f"file {path}: lists no sample; {AGAIN}")
    return listed


@dataclass(frozen=True, eq=False)
class SampleImages:
    """Bands (n, side, side, C) of samples, decoded when they are asked for."""

    root: Path
    """The folder of the list."""
    listed: SampleList
    """The samples."""
    digests: Mapping[str, bytes]
    """What identifies the content of each of `listed.tables()`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all of them together."""
        return len(self.listed.samples), *self.listed.side, len(self.listed.bands)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of their bands."""
        return np.dtype(self.listed.dtype)

    @property
    def ndim(self) -> int:
        """Axes of the shape."""
        return len(self.shape)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.listed.samples)

    def __getitem__(self, window: tuple[int, slice, slice]) -> Array:
        """Return rows and columns (h, w, C) of a sample, by its position.

        Raises:
            UserError: It can't be read, or is another one than was listed.
        """
        position, rows, columns = window
        sample = self.listed.samples[position]
        planes = _decoded(self.root / LINK / sample.table, sample.at, self.listed.bands, self.listed.nodata)
        if planes.values.dtype.name != self.listed.dtype or any(np.less(planes.values.shape[:2], self.listed.side)):
            raise UserError(
                f"sample {sample.at.group}.{sample.at.row} of {sample.table}: has {planes.values.shape[:2]} pixels of"
                f" {planes.values.dtype}, and was listed with {self.listed.side} of {self.listed.dtype}; {AGAIN}"
            )
        part = planes.values[: self.listed.side[0], : self.listed.side[1]][rows, columns]
        return without_offset(replace(planes, values=part), sample.subtracted).values

    def identity(self, position: int) -> bytes:
        """Return bytes that tell a sample from all others: its table's content, and where it lies there."""
        sample = self.listed.samples[position]
        facts = (sample.at, sample.subtracted, self.listed.bands, self.listed.side)
        return self.digests[f"{LINK}/{sample.table}"] + repr(facts).encode()


# Windows of a sample are asked for one after the other, so the last one is kept: some 20 MB.
@lru_cache(maxsize=1)
def _decoded(table: Path, at: Row, bands: tuple[str, ...], nodata: float | None) -> Planes:
    try:
        planes = planes_of(read_sample(table, at, bands), bands, nodata)
    except SceneError as error:
        raise UserError(
            f"sample {at.group}.{at.row} of {table}: {error.detail}; restore the table, or {AGAIN}"
        ) from error
    planes.values.flags.writeable = False
    return planes
