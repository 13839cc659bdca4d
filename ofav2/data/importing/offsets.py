"""Subtract the offset that Sentinel-2 products have since processing baseline 04.00, when it is asked for."""

import re
from dataclasses import replace
from typing import Literal

import numpy as np

from ofav2.data.importing.rasters import Planes, SceneError
from ofav2.data.patches import valid_values

Offset = int | Literal["product_id"]
"""What is subtracted: the same number from all scenes, or what the name of each scene's product calls for."""
OFFSET = 1000
"""What is added to reflectances since `BASELINE`, so that those below 0 can be stored."""
BASELINE = 400
"""Processing baseline 04.00, of January 2022; older images that were processed again have later ones, too."""
_LATEST = 9000
"""Baselines from here on are no versions: 99.99 stands for products of another maker."""


def offset_of(product: str | None, offset: Offset) -> int:
    """Return what is to be subtracted from a scene.

    Raises:
        SceneError: Its product is to tell, and does not.

    Source: ESA, Sentinel-2 Products Specification Document, section 4 (RADIO_ADD_OFFSET).
    """
    if offset != "product_id":
        return offset
    found = re.search(r"_N(\d{4})_", product or "")
    if found is None or int(found[1]) >= _LATEST:
        raise SceneError(
            "unknown baseline", f"product {product or '(none)'} names no processing baseline, so its offset is unknown"
        )
    return OFFSET if int(found[1]) >= BASELINE else 0


def without_offset(planes: Planes, offset: int) -> Planes:
    """Subtract an offset from all pixels with data.

    Whole numbers stay in the range of their type: where they have no sign, reflectances below 0 become 0. A number that
    would become that of no data is one more, or one less where there is no more.
    """
    if not offset:
        return planes
    values, dtype = planes.values, planes.values.dtype
    valid = valid_values(values, planes.nodata)
    lowest, highest = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-np.inf, np.inf)
    subtracted = np.clip(values.astype(np.float64) - offset, lowest, highest)
    beside = 1 if planes.nodata != highest else -1
    subtracted = (subtracted + beside * (subtracted == planes.nodata)).astype(dtype)
    return replace(planes, values=np.where(valid, subtracted, values))
