"""Define sub-networks and spaces of them: plain numbers, no torch.

A `Subnet` describes one network completely and canonically; a `Space` is the set of networks that may be chosen now.
Progressive shrinking is a sequence of growing spaces (OFA, Cai et al., ICLR 2020, section 3; OFAv2 adds two).
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations, product
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # Loading an extracted network needs this file, and must not need numpy.
    import numpy as np

BRANCHES = ("mbconv", "conv", "transform")
"""Branches of a parallel block, in the order in which they are counted: OFAv2's (a), (b) and (c)."""

FIXED = "fixed"
"""The one branch of a stage without choices, as of a network that was not made to be elastic."""

_NAMES = (*BRANCHES, FIXED)

DIMENSIONS = ("resolution", "kernel", "expand", "depth", "level", "height")
"""Elastic dimensions of a network."""


class SpaceError(ValueError):
    """A sub-network, or a choice, that is malformed or outside its space.

    The message names the field, the value, the rule and the next step.
    """


class BlockChoice(NamedTuple):
    """Choices of one active block."""

    kernel: int | None
    """Kernel size of the MBConv branch in pixels; None where that branch is off."""
    expand: int | None
    """Expansion ratio of the MBConv branch; None where that branch is off."""
    level: tuple[str, ...]
    """Active branches, in the order of `BRANCHES`."""


@dataclass(frozen=True)
class Subnet:
    """One sub-network: frozen, hashable and canonical.

    Choices of what does not run are dropped on construction: stages after the exit, blocks past a stage's depth, and
    kernel and expand of a block whose MBConv branch is off (they become None). Equal networks therefore compare equal,
    hash alike and have equal encodings. `dataclasses.replace(subnet, height=3)` is the same network cut at exit 3.

    Args:
        resolution: Side of the square input image in pixels.
        depth: Active blocks per stage; entries past `height` are dropped.
        kernel: Kernel sizes, a tuple per stage with an entry per block.
        expand: Expansion ratios, likewise.
        level: Names of the active branches, a tuple of names per block, likewise.
        height: Exit at which the network ends; exit i follows body stage i, counted from 1.

    Raises:
        SpaceError: If a field has the wrong type, or too few entries.
    """

    resolution: int
    depth: tuple[int, ...]
    kernel: tuple[tuple[int | None, ...], ...]
    expand: tuple[tuple[int | None, ...], ...]
    level: tuple[tuple[tuple[str, ...], ...], ...]
    height: int

    @classmethod
    def of_blocks(
        cls, resolution: int, blocks: Sequence[Sequence["BlockChoice"]], depth: Sequence[int] | None = None
    ) -> "Subnet":
        """Return the network of these choices, block by block; it ends at the exit after the last stage of them.

        Args:
            resolution: Side of the image in pixels.
            blocks: The choices of each stage's blocks.
            depth: Active blocks per stage; None: all that are given.
        """
        return cls(
            resolution=resolution,
            height=len(blocks),
            depth=tuple(map(len, blocks)) if depth is None else tuple(depth),
            kernel=tuple(tuple(choice.kernel for choice in stage) for stage in blocks),
            expand=tuple(tuple(choice.expand for choice in stage) for stage in blocks),
            level=tuple(tuple(choice.level for choice in stage) for stage in blocks),
        )

    def __post_init__(self) -> None:
        """Check the structure and drop what does not run."""
        object.__setattr__(self, "resolution", _positive("resolution", self.resolution))
        object.__setattr__(self, "height", _positive("height", self.height))
        entries = _entries("depth", self.depth, self.height, "height")
        depth = tuple(_positive(f"depth[{stage}]", value) for stage, value in enumerate(entries))
        level = tuple(
            tuple(
                _branches(f"level[{stage}][{block}]", value)
                for block, value in enumerate(_entries(f"level[{stage}]", values, depth[stage], f"depth[{stage}]"))
            )
            for stage, values in enumerate(_entries("level", self.level, self.height, "height"))
        )
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "kernel", _of_mbconv("kernel", self.kernel, depth, level))
        object.__setattr__(self, "expand", _of_mbconv("expand", self.expand, depth, level))

    def blocks(self, stage: int) -> tuple[BlockChoice, ...]:
        """Return the choices of the active blocks of body stage `stage`, counted from 0."""
        return tuple(map(BlockChoice, self.kernel[stage], self.expand[stage], self.level[stage]))

    def to_dict(self) -> dict[str, Any]:
        """Return lists and numbers only, as they stand in a JSON file."""
        return {
            "resolution": self.resolution,
            "depth": list(self.depth),
            "kernel": [list(values) for values in self.kernel],
            "expand": [list(values) for values in self.expand],
            "level": [[list(branches) for branches in values] for values in self.level],
            "height": self.height,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Subnet":
        """Read what `to_dict` wrote; longer lists are cut to what runs.

        Raises:
            SpaceError: If a field is missing, unknown, of the wrong type or too short; the message names it.
        """
        names = ("resolution", "depth", "kernel", "expand", "level", "height")
        known_fields("sub-network", fields, names)
        return cls(**{name: fields[name] for name in names})

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "Subnet":
        """Read what `to_json` wrote.

        Raises:
            SpaceError: If the text is no JSON, or no sub-network.
        """
        try:
            fields = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise SpaceError(f"sub-network ({shown(text)}) is no JSON: {error}") from error
        return cls.from_dict(fields)

    def __str__(self) -> str:
        """Return a short form for logs, such as `r64 d4-4-4-4-4 k7 e6 l3 exit 5`; differing values become a range."""
        if all(branches == (FIXED,) for values in self.level for branches in values):
            return f"r{self.resolution} exit {self.height}"
        kernels = [k for values in self.kernel for k in values if k is not None]
        expands = [e for values in self.expand for e in values if e is not None]
        levels = [len(branches) for values in self.level for branches in values]
        depth = "-".join(map(str, self.depth))
        return (
            f"r{self.resolution} d{depth} k{_span(kernels)} e{_span(expands)} l{_level_span(self.level, levels)}"
            f" exit {self.height}"
        )


def read_choices(name: str, choices: Any) -> tuple[int, ...]:
    """Return the choices of a dimension, ascending, each once.

    Args:
        name: The dimension, such as `kernel`.
        choices: Whole numbers from 1; kernel sizes are odd.

    Raises:
        SpaceError: If there is no choice, or an impossible one.
    """
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise SpaceError(f"{name} ({shown(choices)}) must be a list with at least one choice")
    values = tuple(sorted({_positive(name, value) for value in choices}))
    for value in values:
        if name == "kernel" and value % 2 == 0:
            raise SpaceError(f"kernel ({value}) must be odd: use sizes such as 3, 5 and 7")
    return values


@dataclass(frozen=True)
class Space:
    """The set of sub-networks that may be chosen: the product of the choices below.

    Kernel, expand and level are chosen per block, depth per stage, resolution and height per network.

    Args:
        resolution: Image sides in pixels.
        kernel: Kernel sizes.
        expand: Expansion ratios.
        depth: Active blocks per stage.
        level: Numbers of active branches per block; any subset of that many branches may be chosen.
        height: Exits at which a network may end.
        stages: Body stages of the supernet.
        blocks: Block positions per stage of the supernet.
        branches: Branches of the supernet's blocks; only `mbconv` where blocks are not parallel.
        keep: Branches that every block has active; others may be off.

    Raises:
        SpaceError: If a dimension has no choice, or one that the supernet can't serve.
    """

    resolution: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    depth: tuple[int, ...]
    level: tuple[int, ...]
    height: tuple[int, ...]
    stages: int = 5
    blocks: int = 4
    branches: tuple[str, ...] = ("mbconv",)
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Sort the choices and check them against what the supernet has."""
        object.__setattr__(self, "stages", _positive("stages", self.stages))
        object.__setattr__(self, "blocks", _positive("blocks", self.blocks))
        object.__setattr__(self, "branches", _branches("branches", self.branches))
        most = {"depth": self.blocks, "level": len(self.branches), "height": self.stages}
        for name in DIMENSIONS:
            values = read_choices(name, getattr(self, name))
            if values[-1] > most.get(name, values[-1]):
                raise SpaceError(f"{name} ({values[-1]}) is more than the supernet has: at most {most[name]}")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "keep", self._kept(self.keep))
        if self.level[0] < len(self.keep):
            raise SpaceError(
                f"level ({self.level[0]}) is less than what every block keeps ({', '.join(self.keep)}): take"
                f" {len(self.keep)} or more"
            )

    def keeping(self, branches: Sequence[str]) -> "Space":
        """Return the part of the space in which every block has these branches active, whatever else.

        Raises:
            SpaceError: If one is no branch of the supernet.
        """
        kept = self._kept(branches)
        return replace(self, keep=kept, level=tuple(count for count in self.level if count >= len(kept)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them: lists, numbers and texts; without `keep` where it is empty."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return values if self.keep else {name: value for name, value in values.items() if name != "keep"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Space":
        """Read what `to_dict` wrote.

        Raises:
            SpaceError: A field is missing, unknown, or holds a choice that can't be; the message names it.
        """
        names = tuple(field.name for field in fields(cls))
        # Spaces that keep nothing are written without it.
        given = {"keep": ()} | dict(values) if isinstance(values, Mapping) else values
        known_fields("space", given, names)
        return cls(**{name: given[name] for name in names})

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Every set of branches that a block may have active."""
        return tuple(
            branches
            for count in self.level
            for branches in combinations(self.branches, count)
            if set(self.keep) <= set(branches)
        )

    @property
    def block_choices(self) -> tuple[BlockChoice, ...]:
        """Every different set of choices that a block may have."""
        found: list[BlockChoice] = []
        for level in self.levels:
            if "mbconv" in level:
                found += [BlockChoice(kernel, expand, level) for kernel, expand in product(self.kernel, self.expand)]
            else:
                found.append(BlockChoice(None, None, level))
        return tuple(found)

    def uniform(
        self,
        *,
        resolution: int | None = None,
        kernel: int | None = None,
        expand: int | None = None,
        depth: int | None = None,
        level: int | Sequence[str] | None = None,
        height: int | None = None,
    ) -> Subnet:
        """Return the network with the same choice in every block; a dimension that is not given takes its largest.

        Args:
            resolution: Image side in pixels.
            kernel: Kernel size of every block.
            expand: Expansion ratio of every block.
            depth: Blocks of every stage.
            level: Active branches of every block: their names, or a number, which takes the first set of so many in
                `levels`.
            height: Exit.

        Raises:
            SpaceError: If a choice is not in the space; the message lists what is.
        """
        given = {"resolution": resolution, "kernel": kernel, "expand": expand, "depth": depth, "height": height}
        value = {
            name: max(getattr(self, name)) if choice is None else self._chosen(name, choice)
            for name, choice in given.items()
        }
        if level is None or isinstance(level, Integral):
            count = max(self.level) if level is None else self._chosen("level", level)
            branches = next(found for found in self.levels if len(found) == count)
        else:
            branches = _branches("level", level)
            if branches not in self.levels:
                raise SpaceError(f"level ({', '.join(branches)}) is not in the space: {self._level_rule()}")
        return Subnet(
            resolution=value["resolution"],
            depth=(value["depth"],) * self.stages,
            kernel=((value["kernel"],) * self.blocks,) * self.stages,
            expand=((value["expand"],) * self.blocks,) * self.stages,
            level=((branches,) * self.blocks,) * self.stages,
            height=value["height"],
        )

    def largest(self) -> Subnet:
        """Return the network with the largest choice of every dimension."""
        return self.uniform()

    def smallest(self) -> Subnet:
        """Return the network with the smallest choice of every dimension; of branches, the first ones are kept."""
        return self.uniform(**{name: min(getattr(self, name)) for name in DIMENSIONS})

    def corners(self) -> tuple[Subnet, ...]:
        """Return every uniform network of smallest and largest choices, at every exit, each once.

        Of the smallest level, and of the largest, every set of branches of that size is a corner.
        """
        ends = {name: sorted({min(getattr(self, name)), max(getattr(self, name))}) for name in DIMENSIONS}
        levels = [branches for branches in self.levels if len(branches) in ends["level"]]
        found = (
            self.uniform(resolution=r, kernel=k, expand=e, depth=d, level=level, height=h)
            for r, k, e, d, level, h in product(
                ends["resolution"], ends["kernel"], ends["expand"], ends["depth"], levels, self.height
            )
        )
        return tuple(dict.fromkeys(found))

    def sample(self, generator: "np.random.Generator") -> Subnet:
        """Draw every choice independently and uniformly (for level: uniformly over the allowed sets of branches).

        A call takes the same number of draws from the generator whatever it finds.
        """
        levels = self.levels

        def per_block(choices: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
            drawn = generator.integers(len(choices), size=(self.stages, self.blocks))
            return tuple(tuple(choices[i] for i in row) for row in drawn.tolist())

        return Subnet(
            resolution=self.resolution[int(generator.integers(len(self.resolution)))],
            height=self.height[int(generator.integers(len(self.height)))],
            depth=tuple(self.depth[i] for i in generator.integers(len(self.depth), size=self.stages).tolist()),
            level=per_block(levels),
            kernel=per_block(self.kernel),
            expand=per_block(self.expand),
        )

    def restrict(self, **choices: Sequence[int]) -> "Space":
        """Return the part of the space with fewer choices, such as `space.restrict(kernel=(5, 7), depth=(4,))`.

        Raises:
            SpaceError: If a dimension is unknown, or a choice is not in the space.
        """
        for name, values in choices.items():
            if name not in DIMENSIONS:
                raise SpaceError(f"{name} is no dimension of the space: use {', '.join(DIMENSIONS)}")
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise SpaceError(f"{name} ({shown(values)}) must be a list of choices")
            for value in values:
                self._chosen(name, value)
        chosen: dict[str, Any] = {name: tuple(values) for name, values in choices.items()}
        return replace(self, **chosen)

    def size(self) -> int:
        """Return how many different networks the space holds, exactly."""
        per_block = sum(len(self.kernel) * len(self.expand) if "mbconv" in branches else 1 for branches in self.levels)
        per_stage = sum(per_block**depth for depth in self.depth)
        return len(self.resolution) * sum(per_stage**height for height in self.height)

    def __contains__(self, subnet: object) -> bool:
        """Return whether `check` passes."""
        if not isinstance(subnet, Subnet):
            return False
        try:
            self.check(subnet)
        except SpaceError:
            return False
        return True

    def check(self, subnet: Subnet) -> None:
        """Check that the network is in the space.

        Raises:
            SpaceError: Naming the first field and value outside it, and the choices there are.
        """
        self._chosen("resolution", subnet.resolution)
        self.check_architecture(subnet)

    def check_architecture(self, subnet: Subnet) -> None:
        """Like `check`, at any resolution: weights do not depend on it.

        Raises:
            SpaceError: Naming the first field and value outside the space, and the choices there are.
        """
        self._chosen("height", subnet.height)
        levels = self.levels
        for stage, depth in enumerate(subnet.depth):
            self._chosen("depth", depth, f"[{stage}]")
            for block, choice in enumerate(subnet.blocks(stage)):
                where = f"[{stage}][{block}]"
                if choice.level not in levels:
                    raise SpaceError(
                        f"level{where} ({', '.join(choice.level)}) is not in the space: {self._level_rule()}"
                    )
                if choice.kernel is not None and choice.expand is not None:
                    self._chosen("kernel", choice.kernel, where)
                    self._chosen("expand", choice.expand, where)

    def encode(self, subnet: Subnet) -> tuple[int, ...]:
        """Return the network as a vector of integers, of one length for all spaces of a supernet.

        Resolution and height, then for every stage its depth and for every block position kernel, expand and level.
        Values stand as they are, level as a bit per branch (the first branch is bit 0); what does not run is 0.

        Raises:
            SpaceError: If the network is not in the space.
        """
        self.check(subnet)
        code = [subnet.resolution, subnet.height]
        for stage in range(self.stages):
            chosen = subnet.blocks(stage) if stage < subnet.height else ()
            code.append(len(chosen))
            for choice in chosen:
                bits = sum(1 << _NAMES.index(branch) for branch in choice.level)
                code += [choice.kernel or 0, choice.expand or 0, bits]
            code += [0, 0, 0] * (self.blocks - len(chosen))
        return tuple(code)

    def decode(self, code: Collection[int]) -> Subnet:
        """Return the network that `encode` made the vector of.

        Raises:
            SpaceError: If the vector has another length, or is no encoding of a network in the space.
        """
        length = 2 + self.stages * (1 + 3 * self.blocks)
        values = [_integer(f"code[{i}]", value) for i, value in enumerate(_vector(code))]
        if len(values) != length:
            raise SpaceError(f"code has {len(values)} entries: an encoding of this space has {length}")
        rows = [values[i : i + 1 + 3 * self.blocks] for i in range(2, length, 1 + 3 * self.blocks)]
        for stage, row in enumerate(rows[: max(values[1], 0)]):
            for block in range(min(row[0], self.blocks)):
                if not 0 < row[3 + 3 * block] < 1 << len(_NAMES):
                    raise SpaceError(
                        f"level of block [{stage}][{block}] ({row[3 + 3 * block]}) is no encoding:"
                        f" branches are the bits of a number from 1 to {(1 << len(_NAMES)) - 1}"
                    )
        subnet = Subnet(
            resolution=values[0],
            height=values[1],
            depth=tuple(row[0] for row in rows),
            kernel=tuple(tuple(row[1::3]) for row in rows),
            expand=tuple(tuple(row[2::3]) for row in rows),
            level=tuple(tuple(_unpack(bits) for bits in row[3::3]) for row in rows),
        )
        if self.encode(subnet) != tuple(values):
            raise SpaceError("code has a value other than 0 where nothing runs: take codes from `encode`")
        return subnet

    def _chosen(self, name: str, value: object, where: str = "") -> int:
        choices: tuple[int, ...] = getattr(self, name)
        number = _integer(f"{name}{where}", value)
        if number not in choices:
            listed = ", ".join(map(str, choices))
            raise SpaceError(f"{name}{where} ({number}) is not in the space: choose one of {listed}")
        return number

    def _level_rule(self) -> str:
        counts = " or ".join(map(str, self.level))
        kept = f", always with {' and '.join(self.keep)}" if self.keep else ""
        return f"choose {counts} of {', '.join(self.branches)}{kept}"

    def _kept(self, branches: Sequence[str]) -> tuple[str, ...]:
        """Return branches to keep in their own order."""
        kept = () if branches in ((), []) else _branches("keep", branches)
        for branch in kept:
            if branch not in self.branches:
                raise SpaceError(f"keep ({branch}) is no branch of this supernet: it has {', '.join(self.branches)}")
        return kept


def walk_blocks(subnet: Subnet) -> Iterator[tuple[int, int, BlockChoice]]:
    """Yield (stage, block, choices) of every active block in the order in which they run, counted from 0."""
    for stage in range(subnet.height):
        for block, choice in enumerate(subnet.blocks(stage)):
            yield stage, block, choice


def known_fields(what: str, values: object, names: Sequence[str]) -> None:
    """Pass if a mapping has these keys and no others.

    Args:
        what: What the mapping describes, for the message.
        values: The mapping.
        names: The keys that it needs.

    Raises:
        SpaceError: It is no mapping, or a key is unknown or missing; the message names it.
    """
    if not isinstance(values, Mapping):
        raise SpaceError(f"{what} ({shown(values)}) must be a mapping with the keys {', '.join(names)}")
    for name in values:
        if name not in names:
            raise SpaceError(f"{shown(name)} is no field of the {what}: use {', '.join(names)}")
    for name in names:
        if name not in values:
            raise SpaceError(f"{name} is missing from the {what}: it needs {', '.join(names)}")


def shown(value: object) -> str:
    """Return a value as it stands in a message: never longer than a line."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):
        # Python writes out neither integers of thousands of digits nor very deep lists.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(name: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise SpaceError(f"{name} ({shown(value)}) must be a whole number")
    if abs(int(value)) >= 2**31:
        raise SpaceError(f"{name} ({shown(value)}) is out of range: use a number below {2**31}")
    return int(value)


def _vector(code: object) -> tuple[Any, ...]:
    """Return the entries of a list, an array or the like."""
    if isinstance(code, Collection) and not isinstance(code, str | bytes | Mapping | Set):
        try:
            return tuple(code)
        except TypeError:
            # An array without dimensions has no entries.
            pass
    raise SpaceError(f"code ({shown(code)}) must be a vector of integers: take codes from `encode`")


def _positive(name: str, value: object) -> int:
    number = _integer(name, value)
    if number < 1:
        raise SpaceError(f"{name} ({number}) must be at least 1")
    return number


def _entries(name: str, values: object, count: int, counted_by: str) -> tuple[Any, ...]:
    """Return the first `count` entries of a list."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise SpaceError(f"{name} ({shown(values)}) must be a list")
    if len(values) < count:
        raise SpaceError(f"{name} has {len(values)} entries: {counted_by} {count} needs one each")
    return tuple(values[:count])


def _branches(name: str, value: object) -> tuple[str, ...]:
    """Return the names of branches in their own order, each once."""
    known = ", ".join(BRANCHES)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise SpaceError(f"{name} ({shown(value)}) must be a list of at least one of {known}")
    for branch in value:
        if not isinstance(branch, str) or branch not in _NAMES:
            raise SpaceError(f"{name} ({shown(branch)}) is no branch: choose among {known}")
    if len(set(value)) < len(value):
        raise SpaceError(f"{name} ({', '.join(value)}) names a branch twice")
    return tuple(branch for branch in _NAMES if branch in value)


def _of_mbconv(
    name: str, values: object, depth: tuple[int, ...], level: tuple[tuple[tuple[str, ...], ...], ...]
) -> tuple[tuple[int | None, ...], ...]:
    """Return per-block values of the MBConv branch, None where that branch is off."""
    stages = _entries(name, values, len(depth), "height")
    return tuple(
        tuple(
            _positive(f"{name}[{stage}][{block}]", value) if "mbconv" in level[stage][block] else None
            for block, value in enumerate(_entries(f"{name}[{stage}]", row, depth[stage], f"depth[{stage}]"))
        )
        for stage, row in enumerate(stages)
    )


def _unpack(bits: int) -> tuple[str, ...]:
    """Return branches of a level's bits; of an inactive block (0) the first branch, which is dropped."""
    return tuple(branch for i, branch in enumerate(_NAMES) if bits >> i & 1) or BRANCHES[:1]


def _span(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return str(min(values)) if min(values) == max(values) else f"{min(values)}..{max(values)}"


def _level_span(level: tuple[tuple[tuple[str, ...], ...], ...], counts: Sequence[int]) -> str:
    """Return the counts of branches; where all blocks have the same single branch other than the MBConv, its name."""
    same = {branches for values in level for branches in values}
    only = next(iter(same)) if len(same) == 1 else ()
    return "+".join(only) if only and only[0] != "mbconv" else _span(counts)
