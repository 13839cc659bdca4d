"""A network with exits has a space in which exit and resolution are all that can be chosen."""

from dataclasses import replace

import pytest

from supernets import SpaceError, Subnet
from supernets.backbone import MOST_EXITS, Backbone, Tap

TAPS = tuple(Tap(f"layer{number}", 8, "NCHW", 0, 4) for number in (1, 2, 3))
NET = Backbone("some_net", 10, 3, 32, True, 0.0, "norm_linear", TAPS, (1.0, 2.0, 3.0, 4.0))


def test_its_space_holds_one_network_per_exit() -> None:
    space = NET.space((24, 32))
    assert NET.exits == (1, 2, 3, 4) == space.height
    assert space.size() == 2 * 4
    assert [str(subnet) for subnet in NET.space((32,)).corners()] == [f"r32 exit {exit}" for exit in (1, 2, 3, 4)]


def test_its_networks_survive_encoding_and_json() -> None:
    space = NET.space((24, 32))
    for subnet in space.corners():
        assert subnet in space
        assert space.decode(space.encode(subnet)) == subnet
        assert Subnet.from_json(subnet.to_json()) == subnet
        assert {kernel for stage in subnet.kernel for kernel in stage} == {None}


def test_a_network_without_attached_exits_has_its_own_head_alone() -> None:
    plain = replace(NET, taps=())
    assert plain.exits == (1,)
    assert plain.space((24, 32)).size() == 2


def test_a_network_of_one_size_takes_no_other() -> None:
    fixed = replace(NET, any_size=False)
    assert fixed.space((32,)).resolution == (32,)
    with pytest.raises(SpaceError, match="32 alone"):
        fixed.space((24, 32))


def test_an_image_smaller_than_a_feature_is_refused() -> None:
    assert NET.space((4,)).resolution == (4,)
    with pytest.raises(SpaceError, match="at least 4"):
        NET.space((3, 32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("taps", (TAPS[0], TAPS[0])),
        ("taps", tuple(Tap(f"layer{number}", 8, "NCHW", 0, 4) for number in range(MOST_EXITS))),
        ("num_classes", 0),
        ("in_channels", 0),
        ("resolution", -1),
        ("resolution", 32.5),
        ("drop_rate", 1.0),
        ("head", "foo"),
    ],
)
def test_impossible_networks_are_refused(field: str, value: object) -> None:
    with pytest.raises(SpaceError):
        replace(NET, **{field: value})
