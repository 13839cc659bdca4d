"""Import MajorTOM, from its parquet files or from unpacked folders.

In parquet a row is a sample, and a cell of a band holds the bytes of a GeoTIFF. Unpacked, the same bytes are files:
`ROW/ROW_COLUMN/PRODUCT/BAND.tif`.

Source: Francis and Czerkawski, Major TOM: expandable datasets for Earth observation, 2024; the card of Core-S2L2A.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ofav2.data.importing.geotiffs import SUFFIXES, files_below, read_band
from ofav2.data.importing.parquet import Row, list_samples, read_sample
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
    if form.in_place and not tables:
        raise UserError(f"source ({root}): has no .parquet, which alone is read in place; leave out --in-place")
    source = _folder(root)
    scenes = _samples(source, tables, columns) if tables else _unpacked(root, columns)
    if not scenes:
        raise UserError(f"source ({root}): holds no .parquet and no folder of .tif; correct the path")
    form = replace(form, about="MajorTOM")
    if clouds:
        form = replace(form, masks={CLOUDS: "codes"}, names={CLOUDS: dict(enumerate(CLOUD_NAMES))})
    return import_scenes(scenes[:limit], form, out, source)


# Parquet


def _tables(root: Path) -> list[Path]:
    root = root.expanduser()
    if root.is_file():
        return [root]
    return [root / path for path in files_below(root, (".parquet",)) if path.name != METADATA]


def _samples(root: Path, tables: Sequence[Path], columns: Sequence[str]) -> list[Scene]:
    """List the rows of some tables; a table that can't be read is a scene that can't."""
    found: list[Scene] = []
    for table in tables:
        try:
            found += _rows(root, table, columns)
        except SceneError as error:
            found.append(Scene(str(table), partial(_raise, error)))
    return found


def _rows(root: Path, table: Path, columns: Sequence[str]) -> Iterator[Scene]:
    for number, (row, cell, product) in enumerate(list_samples(table, columns)):
        yield Scene(
            f"{table.name}:{number} {cell}",
            partial(_read_row, table, row, columns),
            place=cell,
            product=product,
            sample=(table.relative_to(root).as_posix(), row),
        )


def _read_row(table: Path, row: Row, columns: Sequence[str]) -> Content:
    return _content(read_sample(table, row, columns))


def _raise(error: SceneError) -> Content:
    raise error


def _folder(root: Path) -> Path:
    """Return the folder that paths of tables are relative to."""
    root = root.expanduser()
    return root.parent if root.is_file() else root


# Unpacked


def _unpacked(root: Path, columns: Sequence[str]) -> list[Scene]:
    folders = sorted({path.parent for path in files_below(root, SUFFIXES)}, key=Path.as_posix)
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
