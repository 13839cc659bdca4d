"""Read MajorTOM's tables: a row is a sample, a cell of a band holds a GeoTIFF's bytes. The only owner of pyarrow.

Source: Francis and Czerkawski, Major TOM: expandable datasets for Earth observation, 2024; the card of Core-S2L2A.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ofav2 import files
from ofav2.data.importing.rasters import BandFile, SceneError
from ofav2.errors import UserError
from ofav2.messages import first_line
from ofav2.typed_json import Count


@dataclass(frozen=True)
class Row:
    """Where a sample lies in its table."""

    group: Count
    """Number of the row group, from 0."""
    row: Count
    """Number of the row in it, from 0."""


class Named(NamedTuple):
    """A sample, without its images."""

    row: Row
    """Where it lies."""
    cell: str
    """The cell of MajorTOM's grid."""
    product: str
    """The satellite's product that it comes from."""


def list_samples(table: Path, columns: Sequence[str]) -> list[Named]:
    """List the samples of a table that has certain columns.

    Raises:
        SceneError: It can't be read, or lacks a column.
    """
    with _opened(table) as file:
        missing = [name for name in ("grid_cell", "product_id", *columns) if name not in file.schema_arrow.names]
        if missing:
            raise SceneError("missing band", f"column {missing[0]} is missing of {', '.join(file.schema_arrow.names)}")
        # Names are small: they are read of all rows at once, images row by row.
        names = file.read(columns=["grid_cell", "product_id"]).to_pylist()
        lengths = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    rows = [Row(group, row) for group, length in enumerate(lengths) for row in range(length)]
    return [Named(row, str(name["grid_cell"]), str(name["product_id"])) for row, name in zip(rows, names, strict=True)]


def read_sample(table: Path, row: Row, columns: Sequence[str]) -> list[BandFile]:
    """Read some columns of a sample, each a file of a band of that name.

    Raises:
        SceneError: The table or a cell of it can't be read, or there is no such row.
    """
    with _opened(table) as file:
        rows = file.metadata.row_group(row.group).num_rows if row.group < file.num_row_groups else 0
        if row.row >= rows:
            raise SceneError("unreadable table", f"{table} has no row {row.row} in group {row.group}")
        cells = file.read_row_group(row.group, columns=list(columns)).slice(row.row, 1).to_pylist()[0]
    for name, content in cells.items():
        if not isinstance(content, bytes) or not content:
            raise SceneError("unreadable file", f"column {name} of {table} holds no bytes")
    return [BandFile(f"{table.name}:{name}", cells[name], (name,)) for name in columns]


@contextmanager
def _opened(table: Path) -> Iterator[Any]:
    """Open a table.

    Raises:
        SceneError: It can't be read, or what is read in the body can't; for example because it is cut off.
    """
    pyarrow = _pyarrow()
    try:
        with files.open_to_read(table) as handle, pyarrow.parquet.ParquetFile(handle) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise SceneError("unreadable table", f"{table} can't be read ({first_line(error)})") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise SceneError("unreadable table", f"{table} can't be read ({reason})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("pyarrow (missing): reads parquet; install it with `pip install '.[eo]'`") from error
    return pyarrow
