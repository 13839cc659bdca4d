"""The supernets' variants as parameters of tests."""

import pytest

import supernets

_PAIRS = ("se_b", "se_dp", "ee_d", "ee_p")
"""Early exits, dense skips and parallel blocks: each of them, and each two of them, with and without one another."""

VARIANTS = [pytest.param(name, marks=() if name in _PAIRS else pytest.mark.slow) for name in supernets.names()]
"""All variants; those that add no new pair of features are slow tests."""
