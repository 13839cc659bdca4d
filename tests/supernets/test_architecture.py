"""A supernet's description against the method's tables."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernets import BRANCHES, Architecture, Space, SpaceError, create, names
from supernets.architecture import hidden_channels, make_divisible, squeeze_channels
from tests.supernets.reference import divisible


def arch(variant: str = "ee_dp", **changes: Any) -> Architecture:
    return create(variant, **({"num_classes": 200} | changes)).architecture


@given(st.integers(1, 5000) | st.floats(0.1, 5000))
@settings(deadline=None)
def test_make_divisible_is_the_nearest_multiple_never_under_90_percent(value: float) -> None:
    made = make_divisible(value)
    assert made == divisible(value)
    assert made % 8 == 0
    assert made >= 0.9 * value


def test_channels_of_the_paper() -> None:
    base, wide = arch(), arch(width_mult=1.2)
    assert base.stem_channels == 16
    assert wide.stem_channels == 24
    assert [stage.channels for stage in base.stages] == [24, 40, 80, 112, 160]
    assert [stage.channels for stage in wide.stages] == [32, 48, 96, 136, 192]
    assert [stage.in_channels for stage in base.stages] == [16, 24, 40, 80, 112]
    assert [stage.stride for stage in base.stages] == [2, 2, 2, 1, 2]
    assert [stage.activation for stage in base.stages] == ["relu"] * 2 + ["hardswish"] * 3
    assert [stage.squeeze_excite for stage in base.stages] == [False, True, False, True, True]


def test_exit_sizes_are_scaled_once() -> None:
    assert [arch().exit_channels(exit) for exit in range(1, 6)] == [
        (144, 192),
        (240, 320),
        (480, 640),
        (672, 896),
        (960, 1280),
    ]
    assert arch(width_mult=1.2).exit_channels(5) == (1152, 1536)


def test_hidden_and_squeezed_channels() -> None:
    assert [hidden_channels(24, expand) for expand in (3, 4, 6)] == [72, 96, 144]
    assert [squeeze_channels(hidden) for hidden in (72, 120, 240, 672, 960)] == [24, 32, 64, 168, 240]


def test_exits_branches_and_strides() -> None:
    assert arch().exits == (1, 2, 3, 4, 5)
    assert arch("se_dp").exits == (5,)
    assert arch().branches == BRANCHES
    assert arch("ee_d").branches == ("mbconv",)
    assert [arch().stride_to(exit) for exit in range(1, 6)] == [4, 8, 16, 16, 32]
    assert [arch(stem_stride=1).stride_to(exit) for exit in range(1, 6)] == [2, 4, 8, 8, 16]
    assert [arch().block_inputs(1, block) for block in range(4)] == [24, 40, 40, 40]


def test_choices_are_sorted() -> None:
    unsorted = arch(kernel=(7, 3), expand=(6, 2), depth=(4, 1))
    assert (unsorted.kernel, unsorted.expand, unsorted.depth, unsorted.blocks) == ((3, 7), (2, 6), (1, 4), 4)
    assert arch(kernel=[7, 3]) == arch(kernel=(3, 7))


def test_the_space_offers_everything() -> None:
    space = arch().space((32, 64))
    assert (space.kernel, space.expand, space.depth) == ((3, 5, 7), (3, 4, 6), (2, 3, 4))
    assert (space.level, space.height, space.resolution) == ((1, 2, 3), (1, 2, 3, 4, 5), (32, 64))
    plain = arch("se_d").space((64,))
    assert (plain.level, plain.height, plain.branches) == ((1,), (5,), ("mbconv",))


def test_a_resolution_below_the_total_stride_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"resolution \(31\).*32.*stem_stride 1"):
        arch().space((31, 64))
    assert arch(stem_stride=1).space((16,)).resolution == (16,)
    with pytest.raises(SpaceError, match=r"resolution \(15\).*16") as refusal:
        arch(stem_stride=1).space((15,))
    assert "stem_stride" not in str(refusal.value)


def test_architectures_are_values() -> None:
    assert arch() == arch()
    assert hash(arch()) == hash(arch())
    assert replace(arch(), num_classes=10) == arch(num_classes=10)


# Records


@pytest.mark.parametrize("variant", names())
def test_an_architecture_comes_back_through_json(variant: str) -> None:
    given = create(variant, num_classes=7, width_mult=0.5, kernel=(3, 5), expand=(2,), depth=(1, 2), stem_stride=1)
    plain = json.loads(json.dumps(given.architecture.to_dict()))
    assert Architecture.from_dict(plain) == given.architecture
    assert Space.from_dict(json.loads(json.dumps(given.space.to_dict()))) == given.space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "se_x"}, r"^supernet \('se_x'\) is unknown \(did you mean"),
        ({"variant": ["ee_dp"]}, r"^supernet \(\['ee_dp'\]\) is unknown"),
        ({"num_classes": "ten"}, r"^num_classes \('ten'\)"),
        ({"kernel": [3, 4]}, r"^kernel \(4\)"),
        ({"kernel": 3}, r"^kernel \(3\) must be a list"),
        ({"kernel": [5, 3]}, r"^kernel \(\[5, 3\]\) does not go with the other fields"),
        ({"dense": False}, r"^dense \(False\) does not go with the other fields: a ee_dp supernet of these has True"),
        ({"exits": [5]}, r"^exits \(\[5\]\) does not go"),
        ({"stem_channels": 17}, r"^stem_channels \(17\) does not go"),
        ({"stages": []}, r"^stages \(\[\]\) does not go"),
        ({"surprise": 1}, r"^'surprise' is no field of the architecture"),
    ],
)
def test_what_is_no_architecture_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message) as error:
        Architecture.from_dict(arch().to_dict() | change)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named() -> None:
    plain = arch().to_dict()
    for name in plain:
        with pytest.raises(SpaceError, match=rf"^{name} is missing from the architecture"):
            Architecture.from_dict({key: value for key, value in plain.items() if key != name})
    with pytest.raises(SpaceError, match=r"^architecture \(3\) must be a mapping"):
        Architecture.from_dict(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"kernel": [4]}, {"depth": []}, {"stages": 0}, {"more": 1}])
def test_what_is_no_space_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpaceError):
        Space.from_dict(arch().space((32,)).to_dict() | change)
