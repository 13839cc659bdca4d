"""Import MajorTOM, from its parquet files or from unpacked folders. The only owner of pyarrow.

In parquet a row is a sample, and a cell of a band holds the bytes of a GeoTIFF. Unpacked, the same bytes are files:
`ROW/ROW_COLUMN/PRODUCT/BAND.tif`.

Source: Francis and Czerkawski, Major TOM: expandable datasets for Earth observation, 2024; the card of Core-S2L2A.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ofav2 import files
from ofav2.data.importing.geotiffs import read_band, tifs_below
from ofav2.data.importing.rasters import BandFile, SceneError, library
from ofav2.data.importing.scenes import Content, Form, Imported, Scene, import_scenes
from ofav2.errors import UserError

BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
"""The bands of 10 and 20 m in the order of PhilEO, whose models take these."""
CLOUDS = "cloud_mask"
"""Column and file of the cloud mask."""
CLOUD_NAMES = ("clear", "thick cloud", "thin cloud", "cloud shadow")
"""What its codes 0 to 3 mean (SEnSeI)."""
METADATA = "metadata.parquet"
"""The index of all samples, which holds no image."""


def import_majortom(root: Path, form: Form, out: Path, *, clouds: bool = False, limit: int | None = None) -> Imported:
    """Import MajorTOM; a place is a cell of its grid.

    Args:
        root: A parquet file, or a folder of such or of unpacked samples, at any depth.
        form: How patches are made; bands must be named.
        out: The folder to make.
        clouds: Whether the cloud mask becomes the target `cloud_mask`.
        limit: Samples to import, the first ones; None: all.

    Raises:
        UserError: There is no sample, a library is not installed, or as `import_scenes`.
    """
    library()
    assert form.bands is not None, "MajorTOM has more bands than one wants"
    columns = (*form.bands, *([CLOUDS] if clouds else []))
    tables = _tables(root)
    scenes = _samples(tables, columns) if tables else _unpacked(root, columns)
    if not scenes:
        raise UserError(f"source ({root}): holds no .parquet and no folder of .tif; correct the path")
    form = replace(form, about="MajorTOM")
    if clouds:
        form = replace(form, masks={CLOUDS: "codes"}, names={CLOUDS: dict(enumerate(CLOUD_NAMES))})
    return import_scenes(scenes[:limit], form, out)


# Parquet


def _tables(root: Path) -> list[Path]:
    root = root.expanduser()
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*.parquet") if path.name != METADATA)


def _samples(tables: Sequence[Path], columns: Sequence[str]) -> list[Scene]:
    """List the rows of some tables; a table that can't be read is a scene that can't."""
    found: list[Scene] = []
    for table in tables:
        try:
            found += _rows(table, columns)
        except SceneError as error:
            found.append(Scene(str(table), partial(_raise, error)))
    return found


def _rows(table: Path, columns: Sequence[str]) -> Iterator[Scene]:
    with _opened(table) as file:
        missing = [name for name in ("grid_cell", "product_id", *columns) if name not in file.schema_arrow.names]
        if missing:
            raise SceneError("missing band", f"column {missing[0]} is missing of {', '.join(file.schema_arrow.names)}")
        # Names are small: they are read of all rows at once, images row by row.
        names = file.read(columns=["grid_cell", "product_id"]).to_pylist()
        lengths = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    where = [(group, row) for group, length in enumerate(lengths) for row in range(length)]
    for number, ((group, row), name) in enumerate(zip(where, names, strict=True)):
        cell, product = str(name["grid_cell"]), str(name["product_id"])
        read = partial(_read_row, table, group, row, tuple(columns))
        yield Scene(f"{table.name}:{number} {cell}", read, place=cell, product=product)


def _read_row(table: Path, group: int, row: int, columns: Sequence[str]) -> Content:
    with _opened(table) as file:
        cells = file.read_row_group(group, columns=list(columns)).slice(row, 1).to_pylist()[0]
    for name, content in cells.items():
        if not isinstance(content, bytes) or not content:
            raise SceneError("unreadable file", f"column {name} of {table} holds no bytes")
    return _content([BandFile(f"{table.name}:{name}", content, (name,)) for name, content in cells.items()])


@contextmanager
def _opened(table: Path) -> Iterator[Any]:
    """Open a parquet file.

    Raises:
        SceneError: It can't be read, or what is read in the body can't; for example because it is cut off.
    """
    pyarrow = _pyarrow()
    try:
        with files.open_to_read(table) as handle, pyarrow.parquet.ParquetFile(handle) as file:
            yield file
    except pyarrow.ArrowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SceneError("unreadable table", f"{table} can't be read ({reason})") from error
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        raise SceneError("unreadable table", f"{table} can't be read ({reason})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("pyarrow (missing): reads parquet; install it with `pip install '.[eo]'`") from error
    return pyarrow


def _raise(error: SceneError) -> Content:
    raise error


# Unpacked


def _unpacked(root: Path, columns: Sequence[str]) -> list[Scene]:
    folders = sorted({path.parent for path in tifs_below(root)}, key=Path.as_posix)
    return [_sample(root.expanduser(), folder, columns) for folder in folders]


def _sample(root: Path, folder: Path, columns: Sequence[str]) -> Scene:
    def read() -> Content:
        there = [(name, root / folder / f"{name}.tif") for name in columns]
        if missing := [path for _, path in there if not path.is_file()]:
            raise SceneError("missing band", f"{missing[0]} is missing")
        return _content([read_band(path, (name,)) for name, path in there])

    product = (root / folder).resolve()
    return Scene(folder.as_posix(), read, place=product.parent.name, product=product.name)


def _content(found: Sequence[BandFile]) -> Content:
    masks = [file for file in found if file.bands == (CLOUDS,)]
    return Content([file for file in found if file not in masks], {CLOUDS: masks[0]} if masks else {})
