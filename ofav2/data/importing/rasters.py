"""Decode GeoTIFFs, and put bands of several pixel sizes on the finest grid. The only owner of rasterio.

All forms of satellite images go through `planes_of`: a file with many bands, files with a band each, cells of a table.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ofav2.data.importing.places import RADIUS
from ofav2.data.patches import DTYPES, Array, valid_values
from ofav2.errors import UserError
from ofav2.messages import first_line

CLOSE = 0.01
"""Pixels of the finest grid by which corners may differ and still be the same corner."""
_DRIVERS = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
)
"""How files begin, and GDAL's driver for them."""
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class SceneError(Exception):
    """A scene can't be used; the first argument is the kind of fault, for counts, the second says what and where."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail


class BandFile(NamedTuple):
    """A file of one band or several, in memory."""

    path: str
    """What messages call it."""
    content: bytes
    """Its bytes."""
    bands: tuple[str, ...] | None = None
    """Names of its bands; None: those that it states, or their numbers from 1 where it states none."""


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    crs: str | None
    """Coordinate reference system; None where the file states none."""
    transform: tuple[float, ...]
    """Six numbers a, b, c, d, e, f: column x and row y lie at (a x + b y + c, d x + e y + f)."""

    @property
    def placed(self) -> bool:
        """Whether it says where on Earth the pixels lie."""
        return self.crs is not None

    def at(self, row: float, column: float) -> tuple[float, float]:
        """Return the coordinates of a point, in its reference system."""
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f


class Unit(NamedTuple):
    """What a file states of its numbers: what they mean is scale * number + offset."""

    scale: float
    offset: float


class Hidden(NamedTuple):
    """Pixels of a file that are marked as missing, whatever their values."""

    by: str
    """What marks them, as a message begins."""
    pixels: npt.NDArray[np.bool_]
    """Which they are (H, W)."""
    step: str
    """What to do if it marks nothing, as a message ends."""


@dataclass(frozen=True, eq=False)
class Band:
    """A band of a file, as it is stored."""

    name: str
    path: str
    values: Array
    """Numbers (H, W)."""
    nodata: float | None
    """The value of a pixel without data, as the file states it; None: none, or NaN, which is never data."""
    unit: Unit
    grid: Grid
    hidden: Hidden | None = None
    """Which pixels a mask or an alpha band of the file marks as missing; None: it has neither."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Bands on one grid."""

    values: Array
    """Numbers (H, W, C) of one of the types that patches have."""
    names: tuple[str, ...]
    """Names of the bands."""
    nodata: float | None
    """The value of a pixel without data."""
    units: tuple[Unit, ...]
    """What the files state of each band's numbers; it is not applied."""
    grid: Grid
    """Where the pixels lie."""
    factor: int
    """How many pixels of the grid the coarsest band's pixels have on a side."""


def planes_of(
    files: Sequence[BandFile],
    bands: Sequence[str] | None = None,
    nodata: float | None = None,
    *,
    only: bool = False,
    types: Sequence[str] = DTYPES,
) -> Planes:
    """Decode a scene's files and put its bands on the finest grid, without moving a pixel.

    A coarser band is interpolated bilinearly, between pixels with data alone. Where its nearest pixel has none, it has
    none, either. Pixels without data get the same value in all bands.

    Args:
        files: GeoTIFFs.
        bands: Which bands, in this order; None: all.
        nodata: The value of a pixel without data; None, or one that is not finite: the one that the files state.
        only: Whether to refuse files that have more bands than those.
        types: Types that numbers may have; float64 is rounded to float32.

    Raises:
        SceneError: A file can't be decoded, or bands are missing, of another reference system or type, or do not lie on
            each other; or a mask hides pixels that no value tells from data.
        UserError: rasterio is not installed.
    """
    found = _chosen([band for file in files for band in decode(file)], bands, only)
    finest = min(found, key=lambda band: _pixel(band.grid)).grid
    factors = [_factor(band, finest, found[0]) for band in found]
    dtype = _common_type(found, types)
    value = _of_type(
        _common_nodata(found, None if nodata is None or not math.isfinite(nodata) else nodata), dtype, found
    )
    _refuse_hidden(found, value)
    layers = [_on_grid(band, factor, value, dtype) for band, factor in zip(found, factors, strict=True)]
    names, units = tuple(band.name for band in found), tuple(band.unit for band in found)
    return Planes(np.stack(layers, -1), names, value, units, finest, max(factors))


def refuse_empty(planes: Planes) -> None:
    """Refuse planes of which one is broken.

    Raises:
        SceneError: A band is 0, or without data, everywhere.
    """
    for index, name in enumerate(planes.names):
        values = planes.values[..., index]
        if not (valid_values(values, planes.nodata) & (values != 0)).any():
            raise SceneError("empty band", f"band {name} holds nothing but 0 or no data")


def decode(file: BandFile) -> list[Band]:
    """Decode the bands of a GeoTIFF, or of a PNG.

    Raises:
        SceneError: It can't be decoded, for example because it is cut off.
        UserError: rasterio is not installed.
    """
    rasterio = library()
    # Other drivers of GDAL would open files that a file names.
    driver = next((name for start, name in _DRIVERS if file.content.startswith(start)), None)
    if driver is None:
        raise SceneError("unreadable file", f"{file.path} is neither TIFF nor PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.MemoryFile(file.content) as memory, memory.open(driver=driver) as opened:
                if opened.subdatasets:
                    raise SceneError(
                        "several images",
                        f"{file.path} holds {len(opened.subdatasets)} images, of which one would be read; write each to"
                        " a file of its own, or all as bands of one image",
                    )
                values = opened.read()
                stated = tuple(text or "" for text in opened.descriptions)
                crs = opened.crs.to_string() if opened.crs else None
                nodata = [_stated(one, values.dtype) for one in opened.nodatavals]
                units = [Unit(*one) for one in zip(opened.scales, opened.offsets, strict=True)]
                given = file.bands or (stated if _tell_apart(stated) else None)
                if given is not None and len(given) != len(values):
                    raise SceneError("other bands", f"{file.path} has {len(values)} bands, and {len(given)} are named")
                hidden = _hidden(opened, values, given)
                grid = Grid(opened.height, opened.width, crs, tuple(opened.transform)[:6])
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, ValueError) as error:
        raise SceneError("unreadable file", f"{file.path} can't be decoded ({first_line(error)})") from error
    names = given or tuple(str(number + 1) for number in range(len(values)))
    paths = [file.path] * len(names)
    return [Band(*one, grid, hidden) for one in zip(names, paths, values, nodata, units, strict=True)]


def _stated(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return nodata as a file's pixels have it: those of float32 have the nearest number."""
    # Numbers that are not finite are no data anyway, and no whole number is a fraction.
    if nodata is None or not math.isfinite(nodata) or (dtype.kind in "iu" and nodata != int(nodata)):
        return None
    with np.errstate(over="ignore"):
        nearest = float(np.asarray(nodata).astype(dtype)) if dtype.kind == "f" else nodata
    return float(nearest if math.isfinite(nearest) else nodata)


def _hidden(opened: Any, values: Array, names: Sequence[str] | None) -> Hidden | None:
    """Return which pixels a mask or an alpha band marks as missing; None where there is neither.

    GDAL writes the fourth of four 8-bit bands as alpha unless it is told otherwise, so one with another name is data.
    """
    from rasterio.enums import ColorInterp, MaskFlags

    for number, flags in enumerate(opened.mask_flag_enums, start=1):
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            return Hidden("the mask", opened.read_masks(number) == 0, "")
    if ColorInterp.alpha not in opened.colorinterp:
        return None
    index = opened.colorinterp.index(ColorInterp.alpha)
    if names is not None and names[index].lower() != "alpha":
        return None
    step = f", or if band {index + 1} is no alpha band, name all with --band-names"
    return Hidden("the alpha band", values[index] == 0, step)


def library() -> Any:
    """Return rasterio.

    Raises:
        UserError: It is not installed.
    """
    try:
        import rasterio
        import rasterio.errors
        import rasterio.warp
    except ImportError as error:
        raise UserError("rasterio (missing): reads GeoTIFFs; install it with `pip install '.[eo]'`") from error
    return rasterio


def coordinates(grid: Grid, rows: Sequence[float], columns: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return latitudes and longitudes in degrees (N, 2) of points of a grid.

    Raises:
        SceneError: It has no reference system, or one that can't be turned into these.
    """
    if not grid.placed:
        raise SceneError("unknown place", "does not say where on Earth it lies")
    rasterio = library()
    xs, ys = zip(*(grid.at(*point) for point in zip(rows, columns, strict=True)), strict=True)
    try:
        east, north = rasterio.warp.transform(grid.crs, "EPSG:4326", xs, ys)
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, ValueError) as error:
        raise SceneError("unknown place", f"coordinates of {grid.crs} are unknown ({first_line(error)})") from error
    found = np.stack([np.asarray(north, np.float64), np.asarray(east, np.float64)], 1)
    if not np.isfinite(found).all() or (np.abs(found) > (90, 180)).any():
        raise SceneError("unknown place", f"coordinates {xs[0]:g}, {ys[0]:g} of {grid.crs} lie nowhere on Earth")
    return found


def pixel_metres(grid: Grid) -> float | None:
    """Return the height of a pixel on the ground, in the middle of a grid; None where that can't be told."""
    rows = [grid.height / 2 - 0.5, grid.height / 2 + 0.5]
    try:
        points = coordinates(grid, rows, [grid.width / 2] * 2)
    except SceneError:
        # Scenes of a plan that lies nowhere on Earth can be used where they have places of their own.
        return None
    (north, west), (south, east) = np.radians(points).tolist()
    return 1000 * RADIUS * math.hypot(north - south, (west - east) * math.cos(north))


def lies_on(grid: Grid, other: Grid) -> str | None:
    """Return why two rasters do not have the same pixels; None if they have.

    A raster without a reference system, such as a PNG, has those of the other one if it has as many.
    """
    if (grid.height, grid.width) != (other.height, other.width):
        return f"has {grid.height} x {grid.width} pixels, not {other.height} x {other.width}"
    if not grid.placed or not other.placed:
        return None
    if grid.crs != other.crs:
        return f"has reference system {grid.crs}, not {other.crs}"
    points = ((0.0, 0.0), (float(grid.height), float(grid.width)))
    if any(not _near(grid.at(*point), other.at(*point), other) for point in points):
        return "lies elsewhere"
    return None


def _tell_apart(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _chosen(found: Sequence[Band], bands: Sequence[str] | None, only: bool) -> list[Band]:
    names = [band.name for band in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SceneError("other bands", f"band {twice[0]} is there twice: {found[names.index(twice[0])].path}")
    for name in bands or ():
        if name not in names:
            where = found[0].path if found else "no file"
            raise SceneError("missing band", f"band {name} is missing of {', '.join(names) or 'none'} ({where})")
    if only and bands is not None and (more := [name for name in names if name not in bands]):
        raise SceneError(
            "other bands",
            f"has band {more[0]}, and the first scene only {', '.join(bands)}; say which to take with --bands",
        )
    chosen = [found[names.index(name)] for name in bands or names]
    if not chosen:
        raise SceneError("missing band", "there is no band")
    return chosen


def _pixel(grid: Grid) -> float:
    """Return a pixel's size: of rasters without a place, the fewer pixels the larger each."""
    a, _, _, d, _, _ = grid.transform
    return math.hypot(a, d) if grid.transform != _IDENTITY else 1 / grid.width


def _near(point: tuple[float, float], other: tuple[float, float], grid: Grid) -> bool:
    return math.dist(point, other) <= CLOSE * math.hypot(grid.transform[0], grid.transform[3])


def _factor(band: Band, finest: Grid, first: Band) -> int:
    """Return how many pixels of the finest grid a band's pixel has on a side."""
    if band.grid.crs != first.grid.crs:
        raise SceneError(
            "other reference system",
            f"band {band.name} has {band.grid.crs or 'none'}, and {first.name} has {first.grid.crs or 'none'}"
            f" ({band.path})",
        )
    factor = max(1, round(finest.width / band.grid.width))
    rows, columns = factor * band.grid.height, factor * band.grid.width
    corners = (((0.0, 0.0), (0.0, 0.0)), ((band.grid.height, band.grid.width), (finest.height, finest.width)))
    apart = finest.transform != _IDENTITY and any(
        not _near(band.grid.at(*own), finest.at(*other), finest) for own, other in corners
    )
    if (rows, columns) != (finest.height, finest.width) or apart:
        raise SceneError(
            "unaligned bands",
            f"band {band.name} ({band.grid.height} x {band.grid.width} pixels) does not lie on the finest one"
            f" ({finest.height} x {finest.width}): {band.path}",
        )
    return factor


def _common_type(found: Sequence[Band], types: Sequence[str]) -> np.dtype[Any]:
    dtype = np.result_type(*(band.values.dtype for band in found))
    if dtype == np.float64:
        dtype = np.dtype(np.float32)
    if dtype.name not in types:
        raise SceneError(
            "other type",
            f"{found[0].path} has type {dtype}, and patches {', '.join(types)}; convert it (gdal_translate -ot)",
        )
    return dtype


def _common_nodata(found: Sequence[Band], given: float | None) -> float | None:
    stated = {band.nodata for band in found if band.nodata is not None}
    if given is None and len(stated) > 1:
        raise SceneError("other nodata", f"bands of {found[0].path} state {sorted(stated)}; say which to write")
    value = given if given is not None else next(iter(stated), None)
    for band in found:
        if value is not None and band.nodata not in (None, value) and (band.values == value).any():
            raise SceneError(
                "other nodata", f"band {band.name} states nodata {band.nodata:g}, and has pixels of value {value:g}"
            )
    return value


def _of_type(nodata: float | None, dtype: np.dtype[Any], found: Sequence[Band]) -> float | None:
    """Return nodata as numbers of a type have it: bands of float32 hold the nearest one."""
    if nodata is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(np.asarray(nodata).astype(dtype))
    if not math.isfinite(value) or (dtype.kind in "iu" and value != nodata):
        raise SceneError(
            "other nodata",
            f"nodata {nodata:g} is no number of type {dtype} ({found[0].path}); write the file with one that is, or"
            " give one for the bands with --nodata",
        )
    return value


def _refuse_hidden(found: Sequence[Band], nodata: float | None) -> None:
    """Refuse files of which a mask or an alpha band hides pixels that would count as data."""
    for path in dict.fromkeys(band.path for band in found):
        own = [band for band in found if band.path == path]
        hidden = own[0].hidden
        if hidden is None:
            continue
        counted = np.logical_and.reduce([hidden.pixels, *(_valid(band, nodata) for band in own)])
        if counted.any():
            raise SceneError(
                "unstated nodata",
                f"{hidden.by} of {path} hides {counted.sum()} pixels whose values would count as data; write it with a"
                " nodata value (gdalwarp -dstnodata), or if the bands have a value of their own there, give it with"
                f" --nodata{hidden.step}",
            )


def _valid(band: Band, nodata: float | None) -> npt.NDArray[np.bool_]:
    """Say which pixels of a band are data: by the value that its file states, or else by a common one."""
    return valid_values(band.values, nodata if band.nodata is None else band.nodata)


def _on_grid(band: Band, factor: int, nodata: float | None, dtype: np.dtype[Any]) -> Array:
    """Return a band's numbers on the finest grid."""
    valid = _valid(band, nodata)
    values = band.values if factor == 1 else _finer(band.values, valid, factor)
    valid = valid.repeat(factor, 0).repeat(factor, 1)
    if dtype.kind in "iu":
        values = np.rint(values)
    if not valid.all():
        values = np.where(valid, values, np.asarray(np.nan if nodata is None else nodata))
    return values.astype(dtype)


def _finer(values: Array, valid: npt.NDArray[np.bool_], factor: int) -> Array:
    """Interpolate bilinearly between valid values: pixel centres keep their places, edges repeat."""

    def interpolated(plane: Array) -> Array:
        tensor = torch.from_numpy(plane.astype(np.float64))[None, None]
        found = functional.interpolate(tensor, scale_factor=factor, mode="bilinear", align_corners=False)
        return found[0, 0].numpy()

    if valid.all():
        return interpolated(values)
    weights = interpolated(valid)
    return interpolated(np.where(valid, values, 0)) / np.where(weights > 0, weights, 1)
