"""Arrays that grow are what numpy writes."""

from pathlib import Path

import numpy as np
import pytest

from ofav2.data.importing.arrays import ArrayFile


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "int32"])
@pytest.mark.parametrize("parts", [[], [1], [3, 0, 9, 100]])
def test_a_file_that_grew_is_an_array(tmp_path: Path, dtype: str, parts: list[int]) -> None:
    values = np.arange(2 * 3 * sum(parts)).reshape(-1, 2, 3).astype(dtype)
    with ArrayFile.made(tmp_path / "a.npy", np.zeros((0, 2, 3), dtype)) as file:
        for some in np.split(values, np.cumsum(parts)[:-1]) if parts else []:
            file.append(some)
    found = np.load(tmp_path / "a.npy")
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found, values)
