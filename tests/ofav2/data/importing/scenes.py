"""Write small GeoTIFFs, and read what was imported beside plain references."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import yaml

CRS = "EPSG:32736"
CORNER = 617300.0, 9625100.0
"""Upper left corner in metres; the cell 38D_378R."""


def tif(
    values: npt.NDArray[Any],
    *,
    pixel: float = 10.0,
    crs: str | None = CRS,
    corner: tuple[float, float] = CORNER,
    nodata: float | None = None,
    names: tuple[str, ...] = (),
    mask: npt.NDArray[np.bool_] | None = None,
    unit: tuple[float, float] = (1.0, 0.0),
    **profile: Any,
) -> bytes:
    """The bytes of a GeoTIFF of bands (C, H, W) or one band (H, W); its internal mask says which pixels have data.

    Its numbers mean scale * number + offset, which `unit` are.
    """
    bands = values if values.ndim == 3 else values[None]
    transform = rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1]) if crs else None
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with memory.open(
            driver="GTiff",
            count=len(bands),
            height=bands.shape[1],
            width=bands.shape[2],
            dtype=bands.dtype,
            crs=crs,
            transform=transform,
            nodata=nodata,
            **profile,
        ) as file:
            file.write(bands)
            file.scales, file.offsets = ((value,) * len(bands) for value in unit)
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
            if mask is not None:
                file.write_mask(mask)
        content: bytes = memory.read()
        return content


def write(path: Path, content: bytes) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def noise(*shape: int, seed: int = 0, dtype: str = "uint16", low: int = 1, high: int = 4000) -> npt.NDArray[Any]:
    """Whole random numbers."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def stored(folder: Path, name: str = "patches") -> npt.NDArray[Any]:
    """An array that was written."""
    found: npt.NDArray[Any] = np.load(folder / f"{name}.npy")
    return found


def described(folder: Path) -> dict[str, Any]:
    """The description that was written."""
    found: dict[str, Any] = yaml.safe_load(io.StringIO((folder / "patches.yaml").read_text("utf-8")))
    return found


def finer(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Values (H, W) at finer pixels: each lies between the nearest centres, weighed by distance."""
    rows, columns = (_weights(count, factor) for count in values.shape)
    found: npt.NDArray[Any] = rows @ values @ columns.T
    return found


def _weights(count: int, factor: int) -> npt.NDArray[np.float64]:
    found = np.zeros((count * factor, count))
    for index in range(count * factor):
        place = min(max((index + 0.5) / factor - 0.5, 0), count - 1)
        found[index, int(place)] += 1 - place % 1
        found[index, min(int(place) + 1, count - 1)] += place % 1
    return found
