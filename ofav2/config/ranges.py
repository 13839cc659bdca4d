"""Check a recipe's values against the one table of ranges.

Names and combinations are checked where their meaning is known, and a supernet's options by `supernets`.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from ofav2.config.schema import Config, DataConfig, NetworkConfig, SupernetConfig, TuningConfig
from ofav2.errors import UserError
from ofav2.messages import join, setting, show
from ofav2.typed_json import LARGEST_DEVIATION, LEAST_DEVIATION
from supernets import SpaceError
from supernets.architecture import check_options


@dataclass(frozen=True)
class Rule:
    """What holds for the values at some keys (`*` is every phase); null is exempt."""

    says: str
    holds: Callable[[Any], bool]
    example: str
    keys: tuple[str, ...]


def _ordered(pair: tuple[float, float]) -> bool:
    return 0 < pair[0] <= pair[1] < math.inf


PHASES_FORM = "{full: {epochs: 10, lr: 0.05}}"

RULES = (
    Rule("at least one phase", lambda v: v != {}, PHASES_FORM, ("phases",)),
    Rule(
        "0 or more",
        lambda v: v >= 0,
        "0",
        (
            "run.seed",
            "data.split_seed",
            "phases.*.warmup_epochs",
            "teacher.kd_ratio",
            "optim.weight_decay",
            "optim.grad_clip",
            "run.save_steps",
            "phases.*.patience",
            "run.save_minutes",
            "optim.loss_jump",
            "optim.skip_limit",
            "finetune.warmup_epochs",
            "finetune.patience",
            "data.shrink_to",
        ),
    ),
    Rule(
        "1 or more",
        lambda v: v >= 1,
        "1",
        (
            "data.shots",
            "evaluation.batch_size",
            "tracking.every_steps",
            "run.keep_states",
            "finetune.eval_batch_size",
        ),
    ),
    Rule(
        "2 or more, as one image has no variance",
        lambda v: v >= 2,
        "100",
        ("data.batch_size", "evaluation.calibration_images", "evaluation.calibration_batch"),
    ),
    Rule("from 1 to 4096", lambda v: 1 <= v <= 4096, "32", ("supernet.head_width",)),
    Rule("above 0 and at most 1000000", lambda v: 0 < v <= 1_000_000, "10", ("phases.*.epochs",)),
    Rule("from 1 to 1000000", lambda v: 1 <= v <= 1_000_000, "10", ("finetune.epochs",)),
    Rule("above 0", lambda v: 0 < v < math.inf, "0.01", ("phases.*.lr", "finetune.lr", "data.cache_gib")),
    Rule(
        "four numbers from 0 to 2, the last one up to 0.5",
        lambda v: all(0 <= strength <= 2 for strength in v) and v[3] <= 0.5,
        "[0.4,0.4,0.4,0.1]",
        ("data.jitter",),
    ),
    Rule(
        "a number of operations from 0 to 16 and a magnitude from 0 to 30",
        lambda v: 0 <= v[0] <= 16 and 0 <= v[1] <= 30,
        "[2,9]",
        ("data.randaugment",),
    ),
    Rule("0, or 0.01 to 100", lambda v: v == 0 or 0.01 <= v <= 100, "0.2", ("data.mixup", "data.cutmix")),
    Rule("above 0 and below 1", lambda v: 0 < v < 1, "0.15", ("data.val_fraction",)),
    Rule("0, or above 0 and below 1", lambda v: 0 <= v < 1, "0.2", ("data.test_fraction",)),
    # More would be taken at its word until memory, processes or patience end.
    Rule("from 0 to 1024", lambda v: 0 <= v <= 1024, "0", ("run.threads", "data.workers")),
    Rule("from 1 to 1024", lambda v: 1 <= v <= 1024, "1", ("phases.*.subnets",)),
    Rule("0, or 0.000001 and more", lambda v: v == 0 or v >= 1e-6, "1", ("evaluation.every_epochs",)),
    Rule("from 0.1 to 1", lambda v: 0.1 <= v <= 1, "0.875", ("data.eval_crop",)),
    Rule(
        "0 or more and below 1",
        lambda v: 0 <= v < 1,
        "0.1",
        ("phases.*.dropout", "network.drop_rate", "optim.label_smoothing", "optim.momentum", "finetune.dropout"),
    ),
    Rule("two numbers from 0 to below 1", lambda v: all(0 <= b < 1 for b in v), "[0.9,0.999]", ("optim.betas",)),
    Rule(
        "a range in (0, 1], the smaller number first",
        lambda v: _ordered(v) and v[1] <= 1,
        "[0.85,1]",
        ("data.crop_scale",),
    ),
    Rule("a range above 0, the smaller number first", _ordered, "[0.75,1.33]", ("data.crop_ratio",)),
    Rule("a number per band", lambda v: v != (), "[0.5,0.5,0.5]", ("data.mean",)),
    Rule(
        f"a number from {LEAST_DEVIATION:g} to {LARGEST_DEVIATION:g} per band",
        lambda v: v != () and all(LEAST_DEVIATION <= s <= LARGEST_DEVIATION for s in v),
        "[0.25,0.25,0.25]",
        ("data.std",),
    ),
    Rule(
        "one or more different names",
        lambda v: v != () and len(set(v)) == len(v),
        "[B04,B03,B02]",
        ("data.bands",),
    ),
    Rule(
        "two or more different names",
        lambda v: len(v) > 1 and len(set(v)) == len(v),
        "[forest,water]",
        ("data.classes",),
    ),
    Rule("from 1 to 16384", lambda v: 1 <= v <= 16384, "64", ("data.window",)),
    Rule(
        "above 0.5 and at most 1, so that no other class has as many pixels",
        lambda v: 0.5 < v <= 1,
        "0.6",
        ("data.window_share",),
    ),
    Rule(
        "a number per channel from 0 to 1 (divide those in 0..255 by 255)",
        lambda v: v != () and all(0 <= m <= 1 for m in v),
        "[0.485,0.456,0.406]",
        ("teacher.mean",),
    ),
    Rule(
        "a number per channel above 0 and at most 1 (divide those in 0..255 by 255)",
        lambda v: v != () and all(0 < s <= 1 for s in v),
        "[0.229,0.224,0.225]",
        ("teacher.std",),
    ),
    Rule(
        "one or more different numbers from 1 to 16384",
        lambda v: v != () and len(set(v)) == len(v) and all(1 <= side <= 16384 for side in v),
        "[48,64]",
        ("data.resolutions",),
    ),
    Rule(
        "auto, cpu, cuda, cuda:N or mps",
        lambda v: re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", v, re.ASCII) is not None,
        "auto",
        ("run.device",),
    ),
    Rule(
        "text of one or more printable characters",
        lambda v: v != "" and v.isprintable(),
        "NAME",
        (
            "task",
            "run.folder",
            "data.name",
            "data.root",
            "data.labels",
            "data.cache",
            "data.target",
            "network.name",
            "network.weights",
            "supernet.variant",
            "supernet.init",
            "phases.*.teacher",
            "teacher.policy",
            "teacher.checkpoint",
        ),
    ),
    # W&B's own rules: what breaks them would turn it off for the whole run.
    Rule(
        "1 to 128 printable characters without / \\ # ? % :",
        lambda v: 1 <= len(v) <= 128 and v.isprintable() and not set(v) & set("/\\#?%:"),
        "NAME",
        ("tracking.project", "tracking.entity"),
    ),
    Rule(
        "texts of 1 to 64 printable characters",
        lambda v: all(1 <= len(tag) <= 64 and tag.isprintable() for tag in v),
        "[first,second]",
        ("tracking.tags",),
    ),
)


def check(config: Config | TuningConfig) -> None:
    """Refuse values out of range, the first one found.

    Raises:
        UserError: A value breaks its rule; the message names the key in full.
    """
    _check_ranges(config)
    _check_shrinking(config.data)
    if isinstance(config, TuningConfig):
        _check_warmup("finetune", config.finetune.warmup_epochs, config.finetune.epochs)
        return
    _check_network(config.network)
    _check_supernet(config.supernet)
    for name, phase in config.phases.items():
        _check_warmup(f"phases.{name}", phase.warmup_epochs, phase.epochs)
        if phase.sampler == "sandwich" and phase.subnets < 2:
            key = f"phases.{name}.subnets"
            raise UserError(f"{key} ({phase.subnets}): the sandwich draws 2 or more; set {key}=3 or sampler=uniform")
        if (phase.sampler == "marginals") != bool(phase.networks):
            key, count = f"phases.{name}.networks", len(phase.networks)
            raise UserError(f"{key} ({count} given): needed with sampler=marginals, and with no other; change either")


def check_data(config: DataConfig) -> None:
    """Refuse values of a recipe's data part that are out of range, the first one found.

    Raises:
        UserError: As for `check`.
    """
    _check_ranges(SimpleNamespace(data=config))
    _check_shrinking(config)


def _check_ranges(config: Any) -> None:
    for rule in RULES:
        for pattern in rule.keys:
            for key, value in _values(config, pattern.split("."), ""):
                if value is not None and not rule.holds(value):
                    raise UserError(
                        f"{key} ({show(value)}): must be {rule.says}; set it as in {setting(key, rule.example)}"
                    )


def _check_shrinking(config: DataConfig) -> None:
    largest = max(config.resolutions)
    if 0 < config.shrink_to < largest:
        raise UserError(
            f"data.shrink_to ({config.shrink_to}): must be 0, or the largest of data.resolutions ({largest}) or more;"
            f" set it as in data.shrink_to={2 * largest}"
        )


def _check_network(config: NetworkConfig) -> None:
    if config.kind == "timm" and config.name is None:
        raise UserError("network.name (null): a network of timm needs its name; set it as in network.name=resnet18")
    if config.kind == "supernet" and config != NetworkConfig():
        raise UserError(
            "network.kind (supernet): the other settings of network are for timm's; set network.kind=timm, or leave"
            " them out"
        )


def _check_supernet(config: SupernetConfig) -> None:
    if config.frozen and config.init is None:
        raise UserError("supernet.frozen (true): weights that start anew have to be trained; set supernet.init=RUN")
    options = asdict(config)
    for other in ("variant", "head_width", "init", "frozen", "keep"):
        del options[other]
    try:
        check_options(**options)
    except SpaceError as error:
        raise UserError(f"supernet.{error}") from error


def _check_warmup(key: str, warmup_epochs: float, epochs: float) -> None:
    if warmup_epochs > epochs:
        key = f"{key}.warmup_epochs"
        raise UserError(f"{key} ({warmup_epochs}): must not exceed epochs ({epochs}); lower {key}")


def _values(value: Any, names: Sequence[str], key: str) -> Iterator[tuple[str, Any]]:
    """Return the values at the keys that a rule's pattern stands for, each with its key in full; none that it lacks."""
    if not names:
        yield key, value
    elif names[0] == "*":
        for name, item in value.items():
            yield from _values(item, names[1:], join(key, name))
    elif hasattr(value, names[0]):
        yield from _values(getattr(value, names[0]), names[1:], join(key, names[0]))


PHASE_NAME = re.compile(r"(?!(?:state|aside)-\d|test\Z)[A-Za-z0-9_-]{1,64}")
"""Names that a phase may have: its checkpoint's file is called so, beside those of states, and its table of scores
too, beside the one on test."""
