"""Sub-networks and spaces: canonical, exactly counted, written and read without loss, and nothing but `SpaceError`."""

import copy
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from itertools import chain, combinations, product
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernets import BRANCHES, DIMENSIONS, Space, SpaceError, Subnet, walk_blocks

PAPER = Space(
    resolution=(48, 52, 56, 60, 64),
    kernel=(3, 5, 7),
    expand=(3, 4, 6),
    depth=(2, 3, 4),
    level=(1, 2, 3),
    height=(1, 2, 3, 4, 5),
    branches=BRANCHES,
)
T = TypeVar("T")

BASE = Space(resolution=(64,), kernel=(3, 5, 7), expand=(3, 4, 6), depth=(2, 3, 4), level=(1,), height=(5,))

# Small enough to write down every network.
SMALL = (
    Space((32,), (3, 5), (3,), (1, 2), (1, 3), (1, 2), stages=2, blocks=2, branches=BRANCHES),
    Space((32, 48), (3, 5, 7), (3, 6), (1,), (1, 2, 3), (2,), stages=2, blocks=1, branches=BRANCHES),
    Space((32, 40), (3, 7), (3,), (1, 2), (1,), (1, 3), stages=3, blocks=2),
    Space((32,), (3, 5), (4, 6), (1, 3), (2,), (1,), stages=1, blocks=3, branches=BRANCHES),
    Space((32,), (5,), (4,), (2,), (1,), (1,), stages=1, blocks=2, branches=BRANCHES[:2]),
    Space((32,), (3, 5), (4, 6), (1, 2), (1, 2, 3), (1, 2), stages=2, blocks=2, branches=BRANCHES, keep=("mbconv",)),
    Space((32,), (3, 5), (4,), (1, 2), (2, 3), (1,), stages=1, blocks=2, branches=BRANCHES, keep=("transform",)),
)


def every_block(space: Space) -> list[tuple[int | None, int | None, tuple[str, ...]]]:
    """All (kernel, expand, level) of one block, from the description: an MBConv that is off has no size."""
    found: list[tuple[int | None, int | None, tuple[str, ...]]] = []
    for on in product((True, False), repeat=len(space.branches)):
        level = tuple(branch for branch, active in zip(space.branches, on, strict=True) if active)
        if len(level) in space.level and set(space.keep) <= set(level):
            sizes = product(space.kernel, space.expand) if "mbconv" in level else [(None, None)]
            found += [(kernel, expand, level) for kernel, expand in sizes]
    return found


def every_network(space: Space) -> Iterator[tuple[Any, ...]]:
    """All (resolution, stages) of a space, a stage being the tuple of its active blocks."""
    stages = [blocks for depth in space.depth for blocks in product(every_block(space), repeat=depth)]
    for resolution, height in product(space.resolution, space.height):
        for chosen in product(stages, repeat=height):
            yield resolution, chosen


def subnet_of(resolution: int, stages: Sequence[Sequence[tuple[Any, Any, Any]]]) -> Subnet:
    columns = [tuple(tuple(block[i] for block in stage) for stage in stages) for i in range(3)]
    return Subnet(
        resolution=resolution,
        depth=tuple(map(len, stages)),
        kernel=columns[0],
        expand=columns[1],
        level=columns[2],
        height=len(stages),
    )


def raw(**changes: Any) -> dict[str, Any]:
    """Fields of a sub-network with 5 stages of 4 blocks, all active, with changes."""
    return {
        "resolution": 64,
        "depth": [4] * 5,
        "kernel": [[7] * 4 for _ in range(5)],
        "expand": [[6] * 4 for _ in range(5)],
        "level": [[list(BRANCHES) for _ in range(4)] for _ in range(5)],
        "height": 5,
    } | changes


def changed(path: Sequence[int | str], value: Any) -> dict[str, Any]:
    """`raw()` with another value at a path, such as kernel, 2, 1."""
    given: Any = raw()
    target = given
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return given


def value_or_refusal(make: Callable[[], T]) -> T | None:
    """What `make` returns, or None where it is refused as it should be: by a `SpaceError` of one line."""
    try:
        return make()
    except SpaceError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


def check_whole(subnet: Subnet | None) -> None:
    """A sub-network that was read can be written, read again, shown and looked for."""
    if subnet is not None:
        assert Subnet.from_json(subnet.to_json()) == subnet
        assert isinstance(str(subnet), str)
        assert isinstance(subnet in PAPER, bool)


class TestCanonicalForm:
    def test_stages_after_the_exit_are_dropped(self) -> None:
        one = Subnet.from_dict(raw(height=2))
        other = Subnet.from_dict(raw(height=2, depth=[4, 4, 1, 2, 3], kernel=[[7] * 4] * 2 + [[3] * 4] * 3))
        assert one == other
        assert hash(one) == hash(other)
        assert one.depth == (4, 4)
        assert len(one.kernel) == len(one.expand) == len(one.level) == 2

    def test_blocks_past_the_depth_are_dropped(self) -> None:
        one = Subnet.from_dict(raw(depth=[2] * 5))
        other = Subnet.from_dict(raw(depth=[2] * 5, kernel=[[7, 7, 3, 5]] * 5, level=[[list(BRANCHES)] * 2] * 5))
        assert one == other
        assert hash(one) == hash(other)
        assert one.kernel == ((7, 7),) * 5

    def test_kernel_and_expand_of_a_block_without_mbconv_are_dropped(self) -> None:
        off = changed(("level", 1, 2), ["conv", "transform"])
        one, other = Subnet.from_dict(off), Subnet.from_dict(off | {"kernel": [[7] * 4, [7, 7, 3, 7], *[[7] * 4] * 3]})
        assert one == other
        assert hash(one) == hash(other)
        assert one.kernel[1] == (7, 7, None, 7)
        assert one.expand[1] == (6, 6, None, 6)
        junk = copy.deepcopy(off)
        junk["kernel"][1][2] = junk["expand"][1][2] = None
        assert Subnet.from_dict(junk) == one

    def test_branches_have_one_order(self) -> None:
        assert Subnet.from_dict(changed(("level", 0, 0), ["transform", "mbconv"])) == Subnet.from_dict(
            changed(("level", 0, 0), ["mbconv", "transform"])
        )

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("resolution",), 48),
            (("height",), 4),
            (("depth", 4), 3),
            (("kernel", 4, 3), 5),
            (("expand", 4, 3), 4),
            (("level", 4, 3), ["mbconv"]),
        ],
    )
    def test_networks_that_differ_are_not_equal(self, path: tuple[int | str, ...], value: Any) -> None:
        one, other = Subnet.from_dict(raw()), Subnet.from_dict(changed(path, value))
        assert one != other
        assert PAPER.encode(one) != PAPER.encode(other)

    def test_cutting_at_an_exit_is_a_replace(self) -> None:
        assert replace(Subnet.from_dict(raw()), height=3) == Subnet.from_dict(raw(height=3))
        with pytest.raises(SpaceError, match="height 4"):
            replace(Subnet.from_dict(raw(height=3)), height=4)

    def test_lists_and_numpy_integers_become_tuples_of_plain_integers(self) -> None:
        numpy = raw(
            resolution=np.int64(64), depth=list(np.full(5, 4)), kernel=[list(np.full(4, 7))] * 5, height=np.int8(5)
        )
        subnet = Subnet.from_dict(numpy)
        assert subnet == Subnet.from_dict(raw())
        values = [subnet.resolution, subnet.height, *subnet.depth, *chain(*subnet.kernel)]
        assert {type(number) for number in values} == {int}
        assert Subnet.from_json(subnet.to_json()) == subnet
        space = replace(PAPER, kernel=tuple(np.array([3, 7])))
        assert json.loads(space.largest().to_json())["kernel"] == [[7] * 4] * 5

    def test_a_sub_network_is_frozen_and_can_be_copied_and_pickled(self) -> None:
        subnet = Subnet.from_dict(raw())
        with pytest.raises(FrozenInstanceError):
            subnet.height = 3  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(subnet)) == copy.deepcopy(subnet) == subnet

    def test_short_form(self) -> None:
        assert str(PAPER.largest()) == "r64 d4-4-4-4-4 k7 e6 l3 exit 5"
        assert str(PAPER.uniform(height=2, depth=3, level=("conv",))) == "r64 d3-3 k- e- lconv exit 2"
        assert str(Subnet.from_dict(changed(("kernel", 0, 0), 3))) == "r64 d4-4-4-4-4 k3..7 e6 l3 exit 5"

    def test_walk_blocks_goes_through_the_active_blocks_in_order(self) -> None:
        subnet = PAPER.sample(np.random.default_rng(7))
        walked = list(walk_blocks(subnet))
        assert [(s, b) for s, b, _ in walked] == [(s, b) for s in range(subnet.height) for b in range(subnet.depth[s])]
        for stage, block, choice in walked:
            assert choice.kernel == subnet.kernel[stage][block]
            assert choice.expand == subnet.expand[stage][block]
            assert choice.level == subnet.level[stage][block]


class TestFiles:
    def test_round_trips(self) -> None:
        generator = np.random.default_rng(0)
        for _ in range(50):
            subnet = PAPER.sample(generator)
            assert Subnet.from_dict(subnet.to_dict()) == subnet
            assert Subnet.from_json(subnet.to_json()) == subnet
            assert "\n" not in subnet.to_json()
            assert json.loads(subnet.to_json()) == subnet.to_dict()

    def test_the_dictionary_has_a_list_per_stage_with_an_entry_per_active_block(self) -> None:
        subnet = PAPER.uniform(height=2, depth=3, kernel=5, expand=4, level=1, resolution=56)
        assert subnet.to_dict() == {
            "resolution": 56,
            "depth": [3, 3],
            "kernel": [[5] * 3] * 2,
            "expand": [[4] * 3] * 2,
            "level": [[["mbconv"]] * 3] * 2,
            "height": 2,
        }

    @pytest.mark.parametrize("name", [field.name for field in fields(Subnet)])
    def test_a_missing_field_is_named(self, name: str) -> None:
        given = raw()
        del given[name]
        with pytest.raises(SpaceError, match=f"{name} is missing"):
            Subnet.from_dict(given)

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            (raw(widht=3), ["'widht'", "resolution, depth"]),
            ([64], ["[64]", "mapping"]),
            (None, ["None", "mapping"]),
            (raw(resolution="64"), ["resolution ('64')", "whole number"]),
            (raw(resolution=64.0), ["resolution (64.0)", "whole number"]),
            (raw(resolution=True), ["resolution (True)", "whole number"]),
            (raw(resolution=0), ["resolution (0)", "at least 1"]),
            (raw(resolution=10**5000), ["resolution", "2147483648"]),
            (raw(resolution=-(10**5000)), ["resolution", "2147483648"]),
            (raw(height=-1), ["height (-1)", "at least 1"]),
            (raw(height=6), ["depth has 5 entries", "height 6"]),
            (raw(height=10**5000), ["height", "2147483648"]),
            (raw(height=None), ["height (None)"]),
            (raw(depth=4), ["depth (4)", "list"]),
            (raw(depth="44444"), ["depth ('44444')", "list"]),
            (raw(depth={0: 4}), ["depth ({0: 4})", "list"]),
            (changed(("depth", 3), 0), ["depth[3] (0)", "at least 1"]),
            (changed(("depth", 3), 5), ["level[3] has 4 entries", "depth[3] 5"]),
            (changed(("depth", 3), float("nan")), ["depth[3] (nan)", "whole number"]),
            (raw(kernel=[[7] * 4] * 4), ["kernel has 4 entries", "height 5"]),
            (changed(("kernel", 2), [7]), ["kernel[2] has 1 entries", "depth[2] 4"]),
            (changed(("kernel", 2), 7), ["kernel[2] (7)", "list"]),
            (changed(("kernel", 2, 1), None), ["kernel[2][1] (None)", "whole number"]),
            (changed(("kernel", 2, 1), [7]), ["kernel[2][1] ([7])", "whole number"]),
            (changed(("expand", 4, 3), 0), ["expand[4][3] (0)", "at least 1"]),
            (changed(("expand", 4, 3), "6"), ["expand[4][3] ('6')", "whole number"]),
            (raw(expand=None), ["expand (None)", "list"]),
            (raw(level=3), ["level (3)", "list"]),
            (changed(("level", 1), "mbconv"), ["level[1] ('mbconv')", "list"]),
            (changed(("level", 1, 0), "mbconv"), ["level[1][0] ('mbconv')", "mbconv, conv, transform"]),
            (changed(("level", 1, 0), 2), ["level[1][0] (2)", "mbconv, conv, transform"]),
            (changed(("level", 1, 0), []), ["level[1][0] ([])", "at least one"]),
            (changed(("level", 1, 0), ["skip"]), ["level[1][0] ('skip')", "mbconv, conv, transform"]),
            (changed(("level", 1, 0), [{}]), ["level[1][0] ({})", "mbconv, conv, transform"]),
            (changed(("level", 1, 0), ["conv", "conv"]), ["level[1][0] (conv, conv)", "twice"]),
        ],
    )
    def test_a_refused_choice_of_a_sub_network_is_named_with_its_value(self, given: Any, named: list[str]) -> None:
        with pytest.raises(SpaceError) as refusal:
            Subnet.from_dict(given)
        for part in named:
            assert part in str(refusal.value)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", "64", "NaN", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", b"\xff\xfe\x00"]
    )
    def test_text_that_is_no_sub_network_is_refused(self, text: str) -> None:
        with pytest.raises(SpaceError, match=r"sub-network|'a'"):
            Subnet.from_json(text)

    def test_values_are_cut_to_a_line(self) -> None:
        with pytest.raises(SpaceError) as refusal:
            Subnet.from_dict(raw(depth=dict.fromkeys(range(50), "x" * 50)))
        assert len(str(refusal.value)) < 120

    def test_very_deep_lists_are_refused(self) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for path in (("resolution",), ("kernel", 0, 0), ("level", 0, 0)):
            with pytest.raises(SpaceError, match=path[0]):
                Subnet.from_dict(changed(path, deep))


class TestUniform:
    def test_what_is_not_given_is_the_largest(self) -> None:
        assert PAPER.uniform() == PAPER.largest() == Subnet.from_dict(raw())

    def test_each_dimension(self) -> None:
        subnet = PAPER.uniform(resolution=56, kernel=5, expand=4, depth=3, level=2, height=4)
        expected = subnet_of(56, [[(5, 4, ("mbconv", "conv"))] * 3] * 4)
        assert subnet == expected

    def test_level_by_names(self) -> None:
        subnet = PAPER.uniform(level=("transform", "conv"))
        assert subnet.level == ((("conv", "transform"),) * 4,) * 5
        assert subnet.kernel == ((None,) * 4,) * 5

    def test_smallest(self) -> None:
        assert PAPER.smallest() == subnet_of(48, [[(3, 3, ("mbconv",))] * 2])
        assert BASE.smallest() == subnet_of(64, [[(3, 3, ("mbconv",))] * 2] * 5)

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"resolution": 50}, r"resolution \(50\).*48, 52, 56, 60, 64"),
            ({"kernel": 4}, r"kernel \(4\).*3, 5, 7"),
            ({"kernel": 3.0}, r"kernel \(3.0\)"),
            ({"kernel": float("nan")}, r"kernel \(nan\)"),
            ({"expand": [3]}, r"expand \(\[3\]\)"),
            ({"expand": {}}, r"expand \(\{\}\)"),
            ({"depth": 5}, r"depth \(5\).*2, 3, 4"),
            ({"depth": True}, r"depth \(True\)"),
            ({"height": 0}, r"height \(0\).*1, 2, 3, 4, 5"),
            ({"height": 10**5000}, "height"),
            ({"level": 4}, r"level \(4\).*1, 2, 3"),
            ({"level": True}, r"level \(True\)"),
            ({"level": ()}, r"level \(\(\)\)"),
            ({"level": "mbconv"}, r"level \('mbconv'\)"),
            ({"level": (["conv"],)}, r"level \(\['conv'\]\)"),
            ({"level": 1.5}, r"level \(1.5\)"),
        ],
    )
    def test_a_choice_outside_the_space_is_refused_with_what_there_is(
        self, choice: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SpaceError, match=message):
            PAPER.uniform(**choice)

    def test_branches_outside_the_space_are_refused(self) -> None:
        with pytest.raises(SpaceError, match=r"level \(conv\).*choose 1 of mbconv"):
            BASE.uniform(level=("conv",))
        with pytest.raises(SpaceError, match=r"level \(conv\).*choose 2 or 3 of"):
            PAPER.restrict(level=(2, 3)).uniform(level=("conv",))


class TestCorners:
    def test_corners_of_a_plain_space(self) -> None:
        sizes = product((3, 7), (3, 6), (2, 4))
        expected = {BASE.uniform(kernel=k, expand=e, depth=d) for k, e, d in sizes}
        assert len(BASE.corners()) == 8
        assert set(BASE.corners()) == expected

    def test_corners_of_the_whole_space(self) -> None:
        corners = PAPER.corners()
        expected = set()
        for resolution, height, depth in product((48, 64), range(1, 6), (2, 4)):
            for kernel, expand in product((3, 7), (3, 6)):
                expected.add(subnet_of(resolution, [[(kernel, expand, BRANCHES)] * depth] * height))
                expected.add(subnet_of(resolution, [[(kernel, expand, ("mbconv",))] * depth] * height))
            for branch in ("conv", "transform"):
                expected.add(subnet_of(resolution, [[(None, None, (branch,))] * depth] * height))
        assert len(corners) == len(set(corners)) == len(expected) == 200
        assert set(corners) == expected
        assert {PAPER.largest(), PAPER.smallest()} <= set(corners)
        assert all(corner in PAPER for corner in corners)


class TestSample:
    def test_samples_are_in_the_space_and_reproducible(self) -> None:
        one, other = np.random.default_rng([1, 2]), np.random.default_rng([1, 2])
        drawn = [PAPER.sample(one) for _ in range(100)]
        assert drawn == [PAPER.sample(other) for _ in range(100)]
        assert all(subnet in PAPER for subnet in drawn)
        assert len(set(drawn)) > 95
        assert drawn != [PAPER.sample(np.random.default_rng(3)) for _ in range(100)]

    def test_the_global_generator_is_left_alone(self) -> None:
        before = np.random.get_state()[1]
        PAPER.sample(np.random.default_rng(0))
        assert np.array_equal(before, np.random.get_state()[1])

    def test_every_network_of_a_small_space_is_drawn(self) -> None:
        space = SMALL[1].restrict(height=(2,), resolution=(32,), kernel=(3,), expand=(3,))
        generator = np.random.default_rng(0)
        drawn = Counter(space.sample(generator) for _ in range(6000))
        assert len(drawn) == space.size() == 49
        assert min(drawn.values()) > 70
        assert max(drawn.values()) < 180

    def test_every_choice_is_drawn_equally_often(self) -> None:
        generator = np.random.default_rng(1)
        drawn = [PAPER.sample(generator) for _ in range(1500)]
        counts = {
            "resolution": Counter(subnet.resolution for subnet in drawn),
            "height": Counter(subnet.height for subnet in drawn),
            "depth": Counter(chain.from_iterable(subnet.depth for subnet in drawn)),
            "kernel": Counter(c.kernel for subnet in drawn for _, _, c in walk_blocks(subnet) if c.kernel),
            "expand": Counter(c.expand for subnet in drawn for _, _, c in walk_blocks(subnet) if c.expand),
            "level": Counter(c.level for subnet in drawn for _, _, c in walk_blocks(subnet)),
        }
        choices = {name: set(getattr(PAPER, name)) for name in DIMENSIONS}
        subsets = chain.from_iterable(combinations(BRANCHES, count) for count in (1, 2, 3))
        assert {name: set(count) for name, count in counts.items()} == choices | {"level": set(subsets)}
        for name, count in counts.items():
            fair = count.total() / len(count)
            assert all(abs(n - fair) < 5 * fair**0.5 for n in count.values()), (name, count)


class TestRestrict:
    def test_a_part_is_in_the_whole(self) -> None:
        part = PAPER.restrict(kernel=[7, 5], depth=(4,), level=(3,), height=range(4, 6))
        assert (part.kernel, part.depth, part.level, part.height) == ((5, 7), (4,), (3,), (4, 5))
        assert (part.expand, part.resolution, part.branches) == (PAPER.expand, PAPER.resolution, PAPER.branches)
        generator = np.random.default_rng(0)
        assert all(part.sample(generator) in PAPER for _ in range(20))
        assert any(PAPER.sample(generator) not in part for _ in range(20))
        assert PAPER.restrict() == PAPER

    @pytest.mark.parametrize(
        ("choices", "message"),
        [
            ({"width": (1,)}, "width.*resolution, kernel"),
            ({"kernel": (9,)}, r"kernel \(9\).*3, 5, 7"),
            ({"kernel": ()}, "kernel"),
            ({"kernel": 3}, r"kernel \(3\).*list"),
            ({"kernel": "3"}, r"kernel \('3'\).*list"),
            ({"kernel": None}, r"kernel \(None\).*list"),
            ({"kernel": ([],)}, r"kernel \(\[\]\)"),
            ({"kernel": (3.0,)}, r"kernel \(3.0\)"),
            ({"height": (True,)}, r"height \(True\)"),
        ],
    )
    def test_what_is_not_there_is_refused(self, choices: dict[str, Any], message: str) -> None:
        with pytest.raises(SpaceError, match=message):
            PAPER.restrict(**choices)


class TestSize:
    @pytest.mark.parametrize("space", SMALL)
    def test_size_is_the_number_of_networks_written_down(self, space: Space) -> None:
        written = list(every_network(space))
        assert len(written) == len(set(written)) == space.size()

    @pytest.mark.parametrize("space", SMALL)
    def test_the_networks_written_down_are_the_space(self, space: Space) -> None:
        networks = [subnet_of(*network) for network in every_network(space)]
        assert len(set(networks)) == space.size()
        assert all(network in space for network in networks)

    def test_raw_choices_collapse_to_the_networks_written_down(self) -> None:
        """All assignments of choices to all positions, the inactive ones included, make as many networks."""
        space = SMALL[0].restrict(level=(1,))
        levels = [(branch,) for branch in space.branches]
        blocks = list(product(space.kernel, space.expand, levels))
        found = set()
        for a, b, c, d in product(blocks, repeat=4):
            positions = {name: ((a[i], b[i]), (c[i], d[i])) for i, name in enumerate(("kernel", "expand", "level"))}
            for height, first, second in product(space.height, space.depth, space.depth):
                found.add(Subnet(resolution=32, height=height, depth=(first, second), **positions))
        assert found == {subnet_of(*network) for network in every_network(space)}
        assert len(found) == space.size()

    def test_the_sizes_of_the_paper(self) -> None:
        assert BASE.size() == (9**2 + 9**3 + 9**4) ** 5
        # A block has 9 sizes with each of the 4 sets that have the MBConv, and 3 sets without it.
        stage = sum(39**depth for depth in (2, 3, 4))
        assert PAPER.size() == 5 * sum(stage**height for height in (1, 2, 3, 4, 5))


class TestCodes:
    @pytest.mark.parametrize("space", SMALL)
    def test_every_sub_network_has_an_encoding_of_its_own_that_decodes_to_it(self, space: Space) -> None:
        codes = set()
        for network in every_network(space):
            subnet = subnet_of(*network)
            code = space.encode(subnet)
            assert space.decode(code) == subnet
            codes.add(code)
        assert len(codes) == space.size()
        assert {len(code) for code in codes} == {2 + space.stages * (1 + 3 * space.blocks)}

    def test_the_encoding_of_a_sub_network_is_as_documented(self) -> None:
        subnet = subnet_of(32, [[(5, 3, BRANCHES), (None, None, ("conv",))]])
        assert SMALL[0].encode(subnet) == (32, 1, 2, 5, 3, 7, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)

    def test_a_code_is_the_same_in_every_part_of_the_space(self) -> None:
        part = PAPER.restrict(kernel=(7,), expand=(6,), level=(3,), height=(5,), depth=(2, 4), resolution=(64,))
        generator = np.random.default_rng(0)
        for _ in range(20):
            subnet = part.sample(generator)
            assert part.encode(subnet) == PAPER.encode(subnet)
            assert part.decode(PAPER.encode(subnet)) == PAPER.decode(part.encode(subnet)) == subnet

    def test_codes_may_be_lists_and_arrays(self) -> None:
        code = PAPER.encode(PAPER.smallest())
        assert all(type(value) is int for value in code)
        assert PAPER.decode(list(code)) == PAPER.decode(np.array(code)) == PAPER.smallest()

    @pytest.mark.parametrize("code", [None, 3, "abc", {}, (), (1,), object()])
    def test_what_is_no_vector_is_refused(self, code: Any) -> None:
        with pytest.raises(SpaceError, match="code"):
            PAPER.decode(code)

    def test_every_single_tampering_is_refused_or_another_network(self) -> None:
        space = SMALL[0]
        subnet = subnet_of(32, [[(5, 3, ("mbconv",)), (None, None, ("transform",))]])
        code = space.encode(subnet)
        hostile: list[Any] = [
            -1,
            1,
            2,
            4,
            8,
            9,
            2**31,
            2**70,
            10**5000,
            True,
            None,
            0.0,
            1.5,
            float("nan"),
            "3",
            [],
            np.nan,
        ]
        for i, value in product(range(len(code)), hostile):
            if type(value) is int and value == code[i]:
                continue
            tampered = [*code[:i], value, *code[i + 1 :]]
            found = value_or_refusal(lambda: space.decode(tampered))  # noqa: B023 (called at once)
            if found is not None:
                assert found != subnet
                assert space.encode(found) == tuple(tampered)

    def test_a_value_where_nothing_runs_is_refused(self) -> None:
        code = list(SMALL[0].encode(subnet_of(32, [[(5, 3, ("mbconv",))]])))
        for i in range(6, len(code)):
            assert code[i] == 0
            with pytest.raises(SpaceError, match="where nothing runs"):
                SMALL[0].decode([*code[:i], 1, *code[i + 1 :]])
        off = list(SMALL[0].encode(subnet_of(32, [[(None, None, ("conv",))]])))
        with pytest.raises(SpaceError, match="where nothing runs"):
            SMALL[0].decode([*off[:3], 5, *off[4:]])

    def test_a_network_outside_the_space_has_no_code(self) -> None:
        with pytest.raises(SpaceError, match=r"kernel\[0\]\[0\] \(7\)"):
            PAPER.restrict(kernel=(3, 5)).encode(PAPER.largest())
        with pytest.raises(SpaceError, match=r"kernel\[0\]\[0\] \(7\)"):
            PAPER.restrict(kernel=(3, 5)).decode(PAPER.encode(PAPER.largest()))


class TestContains:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("resolution",), 100, r"resolution \(100\).*48, 52, 56, 60, 64"),
            (("depth", 2), 1, r"depth\[2\] \(1\).*2, 3, 4"),
            (("kernel", 2, 1), 9, r"kernel\[2\]\[1\] \(9\).*3, 5, 7"),
            (("expand", 0, 3), 5, r"expand\[0\]\[3\] \(5\).*3, 4, 6"),
        ],
    )
    def test_check_names_the_field_the_value_and_the_choices(
        self, path: tuple[int | str, ...], value: int, message: str
    ) -> None:
        foreign = Subnet.from_dict(changed(path, value))
        assert foreign not in PAPER
        with pytest.raises(SpaceError, match=message):
            PAPER.check(foreign)

    def test_check_of_level_and_height(self) -> None:
        with pytest.raises(SpaceError, match=r"level\[0\]\[0\] \(mbconv, conv, transform\).*choose 1 of mbconv"):
            BASE.check(PAPER.largest())
        with pytest.raises(SpaceError, match=r"height \(2\).*5"):
            BASE.check(PAPER.uniform(height=2, level=1))

    def test_resolution_counts_for_the_network_and_not_for_its_architecture(self) -> None:
        elsewhere = replace(PAPER.largest(), resolution=224)
        assert elsewhere not in PAPER
        PAPER.check_architecture(elsewhere)

    @pytest.mark.parametrize("thing", [None, 3, "largest", raw(), (64,)])
    def test_what_is_no_sub_network_is_in_no_space(self, thing: object) -> None:
        assert thing not in PAPER


GOOD = {"resolution": (32,), "kernel": (3,), "expand": (3,), "depth": (2,), "level": (1,), "height": (5,)}


class TestKeptBranches:
    def test_no_block_loses_a_branch_that_is_kept(self) -> None:
        part = PAPER.keeping(["mbconv"])
        without = [level for level in PAPER.levels if "mbconv" not in level]
        assert part.levels == tuple(level for level in PAPER.levels if level not in without)
        assert [PAPER.uniform(level=level) in part for level in without] == [False] * len(without)
        assert part.largest() == PAPER.largest()
        assert part.smallest() == PAPER.smallest()
        assert set(part.corners()) == {subnet for subnet in PAPER.corners() if subnet in part}

    def test_numbers_of_branches_that_are_too_few_are_left_out(self) -> None:
        part = PAPER.keeping(("transform", "conv"))
        assert part.level == (2, 3)
        assert part.levels == (("conv", "transform"), BRANCHES)
        assert part.smallest().level[0][0] == ("conv", "transform")
        with pytest.raises(SpaceError, match=r"level .*choose 2 or 3 of .*, always with conv and transform"):
            part.uniform(level=["mbconv", "conv"])

    def test_it_is_kept_in_smaller_spaces_and_in_records_and_none_was_there_before(self) -> None:
        part = PAPER.keeping(["mbconv"])
        assert part.restrict(level=(1, 3)).levels == (("mbconv",), BRANCHES)
        assert Space.from_dict(json.loads(json.dumps(part.to_dict()))) == part
        assert "keep" not in PAPER.to_dict()
        assert part.keeping([]) == PAPER


class TestSpaceArguments:
    def test_choices_are_sorted_and_each_there_once(self) -> None:
        space = Space(**GOOD | {"kernel": [7, 3, 7, 5]})
        assert space.kernel == (3, 5, 7)
        assert space == Space(**GOOD | {"kernel": (5, 3, 7)})
        assert hash(space) == hash(Space(**GOOD | {"kernel": (5, 3, 7)}))

    @pytest.mark.parametrize("name", DIMENSIONS)
    @pytest.mark.parametrize(
        "choices",
        [None, 3, "3", {3}, {}, (), (0,), (-3,), (True,), (3.0,), ("3",), (None,), ([],), (float("nan"),), (10**5000,)],
    )
    def test_bad_choices_are_refused_by_name(self, name: str, choices: Any) -> None:
        with pytest.raises(SpaceError, match=name):
            Space(**GOOD | {name: choices})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kernel": (3, 4)}, r"kernel \(4\).*odd"),
            ({"depth": (5,)}, r"depth \(5\).*at most 4"),
            ({"level": (2,)}, r"level \(2\).*at most 1"),
            ({"height": (6,)}, r"height \(6\).*at most 5"),
            ({"stages": "5"}, "stages"),
            ({"stages": 0}, "stages"),
            ({"stages": None}, "stages"),
            ({"blocks": -1}, "blocks"),
            ({"blocks": 4.0}, "blocks"),
            ({"branches": ()}, "branches"),
            ({"branches": None}, "branches"),
            ({"branches": "mbconv"}, "branches"),
            ({"branches": ("skip",)}, "branches"),
            ({"branches": ("mbconv", "mbconv")}, "branches"),
            ({"branches": ([],)}, "branches"),
            ({"keep": ("conv",)}, r"keep \(conv\) is no branch of this supernet: it has mbconv"),
            ({"keep": ("skip",)}, "keep"),
            ({"keep": None}, "keep"),
            ({"branches": BRANCHES, "keep": ("mbconv", "conv")}, r"level \(1\) is less than .*mbconv, conv.*2 or more"),
        ],
    )
    def test_what_the_supernet_lacks_is_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(SpaceError, match=message):
            Space(**GOOD | change)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 8)
    | st.integers()
    | st.sampled_from([2**31, 2**63, -(2**64), 10**300])
    | st.floats()
    | st.sampled_from([*BRANCHES, ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
paths = st.one_of(
    st.tuples(st.sampled_from([field.name for field in fields(Subnet)])),
    st.tuples(st.sampled_from(["depth", "kernel", "expand", "level"]), st.integers(0, 4)),
    st.tuples(st.sampled_from(["kernel", "expand", "level"]), st.integers(0, 4), st.integers(0, 3)),
)


class TestAnything:
    @given(junk | st.dictionaries(st.sampled_from([field.name for field in fields(Subnet)]), junk))
    @settings(deadline=None)
    def test_from_dict_of_anything(self, given: Any) -> None:
        check_whole(value_or_refusal(lambda: Subnet.from_dict(given)))

    @given(st.lists(st.tuples(paths, junk), min_size=1, max_size=2))
    @settings(deadline=None, max_examples=200)
    def test_from_dict_of_a_sub_network_with_something_else_in_it(self, swaps: list[tuple[Any, Any]]) -> None:
        given = raw()
        for path, value in swaps:
            try:
                target: Any = given
                for key in path[:-1]:
                    target = target[key]
                target[path[-1]] = value
            except (TypeError, IndexError, KeyError):
                # The first swap removed what the second one replaces.
                continue
        check_whole(value_or_refusal(lambda: Subnet.from_dict(given)))

    @given(st.text() | st.binary() | junk.map(json.dumps))
    @settings(deadline=None)
    def test_from_json_of_anything(self, text: Any) -> None:
        check_whole(value_or_refusal(lambda: Subnet.from_json(text)))

    @given(junk)
    @settings(deadline=None)
    def test_from_json_of_what_is_no_text(self, given: Any) -> None:
        check_whole(value_or_refusal(lambda: Subnet.from_json(given)))

    @given(junk | st.lists(st.integers(0, 8), min_size=16, max_size=16))
    @settings(deadline=None)
    def test_decode_of_anything(self, code: Any) -> None:
        check_whole(value_or_refusal(lambda: SMALL[0].decode(code)))

    @given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 66), junk), max_size=3))
    @settings(deadline=None)
    def test_decode_of_a_code_with_something_else_in_it(self, seed: int, swaps: list[tuple[int, Any]]) -> None:
        code: list[Any] = list(PAPER.encode(PAPER.sample(np.random.default_rng(seed))))
        for i, value in swaps:
            code[i] = value
        subnet = value_or_refusal(lambda: PAPER.decode(code))
        if subnet is None:
            assert swaps
        else:
            assert PAPER.encode(subnet) == tuple(code)

    @given(st.dictionaries(st.sampled_from([field.name for field in fields(Space)]), junk))
    @settings(deadline=None)
    def test_space_of_anything(self, changes: dict[str, Any]) -> None:
        space = value_or_refusal(lambda: Space(**GOOD | changes))
        if space is not None:
            assert space.largest() in space

    @given(junk | st.dictionaries(st.sampled_from([field.name for field in fields(Space)]), junk))
    @settings(deadline=None)
    def test_space_from_dict_of_anything(self, given: Any) -> None:
        space = value_or_refusal(lambda: Space.from_dict(given))
        if space is not None:
            assert Space.from_dict(space.to_dict()) == space

    @given(st.dictionaries(st.sampled_from([*DIMENSIONS, "width"]), junk))
    @settings(deadline=None)
    def test_uniform_and_restrict_of_anything(self, choices: dict[str, Any]) -> None:
        part = value_or_refusal(lambda: PAPER.restrict(**choices))
        if part is not None:
            assert part.largest() in PAPER
        choices.pop("width", None)
        subnet = value_or_refusal(lambda: PAPER.uniform(**choices))
        if subnet is not None:
            assert subnet in PAPER
