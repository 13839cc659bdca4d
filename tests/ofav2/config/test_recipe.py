"""Recipes: what is shipped is complete and right, what is wrong is refused in one line that names it."""

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofav2.config import recipe, schema
from ofav2.config.schema import (
    ComputeConfig,
    Config,
    DataConfig,
    FinetuneConfig,
    OptimConfig,
    PhaseConfig,
    SupernetConfig,
    TeacherConfig,
    TuningConfig,
    UnlockConfig,
)
from ofav2.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PHASES = """\
phases:
  full: {epochs: 2, lr: 0.1}
  kernel: {epochs: 1, lr: 0.05, unlock: {kernel: [3, 5, 7]}}
"""
SMALL = f"data: {{name: digits}}\n{PHASES}"


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def refusal(source: str, *overrides: str) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(UserError) as caught:
        recipe.load(source, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 700
    return message


def outcome(source: str, *overrides: str) -> Config | str:
    """The configuration, or the refusal's words; any other error is a bug."""
    try:
        return recipe.load(source, overrides)
    except UserError as error:
        return str(error)


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


# Shipped recipes


def test_shipped_recipes_are_the_yaml_files() -> None:
    assert recipe.names() == tuple(sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
    assert {"cifar10", "digits", "imagenet_paper", "tiny_imagenet_ofa", "tiny_imagenet_paper"} <= set(recipe.names())


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipe_loads_and_survives_writing(name: str, tmp_path: Path) -> None:
    config = recipe.load(name)
    assert recipe.load(written(tmp_path, recipe.dump(config))) == config


def raw(name: str) -> dict[str, Any]:
    """What a shipped recipe's file holds, its base not looked at."""
    values = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipe_is_in_order_and_complete_unless_it_has_a_base(name: str) -> None:
    values = raw(name)
    complete = values.pop("base", None) is None
    assert list(values) == [section for section in recipe.SECTIONS if complete or section in values]
    for section, kind in get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind) and section in values:
            fields = [field.name for field in dataclasses.fields(kind)]
            assert list(values[section]) == [name for name in fields if complete or name in values[section]], section


@pytest.mark.parametrize("name", [name for name in recipe.names() if "base" in raw(name)])
def test_derived_recipe_holds_only_what_differs(name: str) -> None:
    values = raw(name)
    base = dataclasses.asdict(recipe.load(values.pop("base")))
    own = dataclasses.asdict(recipe.load(name))
    for section in values:
        if section in ("task", "phases"):
            assert own[section] != base[section]
            continue
        for key in values[section]:
            assert own[section][key] != base[section][key], f"{section}.{key}"


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipe_has_its_header(name: str) -> None:
    header = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    assert f"# Command:   ofav2 train {name}" in header
    assert re.search(r"^# Hardware: +\S", header, re.MULTILINE)
    assert re.search(r"^# Hours: +(not measured yet|.*\d)", header, re.MULTILINE)
    assert re.search(r"^# Expected: +(not measured yet|.*\d)", header, re.MULTILINE)
    assert ("data.root=PATH" in header) == (name != "digits")
    sentence = recipe.describe(name)
    assert sentence.startswith(("Train", "Reproduce"))
    assert sentence.endswith(".")
    assert len(sentence.splitlines()) == 1


def test_description_stops_at_the_first_sentence() -> None:
    assert recipe.describe("digits") == (
        "Train a small early-exit, dense, parallel supernet (EE_DP) through all its phases in minutes on a laptop."
    )


PAPER = (
    # phase, unlocks, epochs after the warm-up, warm-up epochs, learning rate, sub-networks per step
    ("full", UnlockConfig(), 180, 0, 0.08, 1),
    ("kernel", UnlockConfig(kernel=(3, 5, 7)), 120, 5, 0.03, 1),
    ("level_1", UnlockConfig(level=(2, 3)), 25, 0, 0.0025, 2),
    ("level_2", UnlockConfig(level=(1, 2, 3)), 120, 5, 0.0075, 2),
    ("height_1", UnlockConfig(height=(4, 5)), 25, 0, 0.001875, 2),
    ("height_2", UnlockConfig(height=(3, 4, 5)), 60, 5, 0.00375, 2),
    ("height_3", UnlockConfig(height=(2, 3, 4, 5)), 90, 5, 0.0075, 2),
    ("height_4", UnlockConfig(height=(1, 2, 3, 4, 5)), 120, 5, 0.015, 2),
    ("depth_1", UnlockConfig(depth=(3, 4)), 25, 0, 0.0025, 2),
    ("depth_2", UnlockConfig(depth=(2, 3, 4)), 120, 5, 0.0075, 2),
    ("expand_1", UnlockConfig(expand=(4, 6)), 25, 0, 0.0025, 4),
    ("expand_2", UnlockConfig(expand=(3, 4, 6)), 120, 5, 0.0075, 4),
)


def paper_phases(*dimensions: str) -> list[tuple[str, PhaseConfig]]:
    return [
        (
            name,
            PhaseConfig(
                epochs + warmup,
                lr,
                unlock,
                warmup,
                subnets=subnets,
                sampler="uniform",
                dropout=0.2 if name == "full" else 0.1,
            ),
        )
        for name, unlock, epochs, warmup, lr, subnets in PAPER
        if name.split("_")[0] in dimensions
    ]


def test_tiny_imagenet_paper_follows_the_paper() -> None:
    config = recipe.load("tiny_imagenet_paper")
    # As a list: a mapping would compare without its order.
    assert list(config.phases.items()) == paper_phases("full", "kernel", "level", "height", "depth", "expand")
    assert config.supernet == SupernetConfig("ee_d", 1.0, (3, 5, 7), (3, 4, 6), (2, 3, 4), 2)
    assert config.teacher == TeacherConfig(exit_weights="ascending_paper")
    data, optim, evaluation = config.data, config.optim, config.evaluation
    assert (data.name, data.batch_size, data.val_fraction) == ("tiny_imagenet", 64, 0.15)
    assert data.resolutions == (48, 52, 56, 60, 64)
    assert (data.crop_scale, data.flip, data.eval_crop) == ((0.85, 1.0), True, 0.875)
    assert (data.mean, data.std) == ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
    assert (optim.name, optim.momentum, optim.weight_decay, optim.label_smoothing) == ("sgd", 0.9, 3e-5, 0.1)
    assert (evaluation.calibration_images, evaluation.calibration_batch) == (2000, 100)


def test_tiny_imagenet_ofa_is_the_baseline_under_the_same_conditions() -> None:
    paper, ofa = recipe.load("tiny_imagenet_paper"), recipe.load("tiny_imagenet_ofa")
    assert (ofa.supernet.variant, ofa.teacher.policy) == ("se_b", "fixed")
    assert list(ofa.phases.items()) == paper_phases("full", "kernel", "depth", "expand")
    assert (ofa.data, ofa.optim, ofa.evaluation) == (paper.data, paper.optim, paper.evaluation)


def test_imagenet_paper_has_the_papers_resolutions() -> None:
    config = recipe.load("imagenet_paper")
    assert config.data.resolutions == tuple(range(128, 225, 4))
    assert config.data.root is None
    assert list(config.phases.items()) == paper_phases("full", "kernel", "level", "height", "depth", "expand")


# Merging


def test_defaults_are_the_schemas(small: str) -> None:
    phases = {"full": PhaseConfig(2.0, 0.1), "kernel": PhaseConfig(1.0, 0.05, UnlockConfig(kernel=(3, 5, 7)))}
    assert recipe.load(small) == Config(data=DataConfig(name="digits"), phases=phases)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.seed=7", "run.seed", 7),
        ("run.device=cuda:1", "run.device", "cuda:1"),
        ("phases.full.lr=1e-3", "phases.full.lr", 0.001),
        ("phases.full.lr=1", "phases.full.lr", 1.0),
        ("data.resolutions=[16, 20]", "data.resolutions", (16, 20)),
        ("data.root=a=b", "data.root", "a=b"),
        ("data.root=", "data.root", None),
        ("teacher.precision=", "teacher.precision", None),
        ("teacher.precision=bfloat16", "teacher.precision", "bfloat16"),
        ("data.flip=no", "data.flip", False),
        ("data={root: here, flip: false}", "data.root", "here"),
        ("phases.full.unlock.kernel=[]", "phases.full.unlock.kernel", ()),
        ("data.mean=[0, 0.5, 1]", "data.mean", (0.0, 0.5, 1.0)),
        ("tracking.tags=[a, '1']", "tracking.tags", ("a", "1")),
        ("teacher.exit_weights=[0.5, 0.5, 0, 0, 0]", "teacher.exit_weights", (0.5, 0.5, 0.0, 0.0, 0.0)),
        (
            "teacher.exit_weights={losses: [1], ensemble: uniform}",
            "teacher.exit_weights",
            {"losses": (1.0,), "ensemble": "uniform"},
        ),
    ],
)
def test_override_sets_its_key(small: str, tmp_path: Path, override: str, key: str, value: Any) -> None:
    config = recipe.load(small, [override])
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    assert recipe.load(written(tmp_path, recipe.dump(config))) == config


@pytest.mark.parametrize(
    "override",
    [
        "data.root=set #2",
        "data.root=#2",
        "data.root='set' #2",
        "data.root= set",
        "data.root=set ",
        "data.root=set\n",
        "data.root=--- set",
        "data.root=~",
        "data.root=010",
        "run.seed=010",
        "run.seed=-07",
        "run.seed=08",
        "run.seed=1:30",
        "run.seed=7 # lucky",
        "optim.weight_decay=1:30.5",
        "tracking.tags=[a, 007]",
        "run={seed: 010}",
    ],
)
def test_an_override_that_yaml_would_read_otherwise_is_refused(small: str, override: str) -> None:
    assert "YAML" in refusal(small, override)


@pytest.mark.parametrize(
    ("line", "root"),
    [
        ("set #2", None),
        ("set ##2", None),
        ("010", None),
        ("12:30", None),
        ("'set #2'", "set #2"),
        ("'010'", "010"),
        ("set#2", "set#2"),
        ("set # of 2020", "set"),
        ("set #", "set"),
        ("'set' #2", "set"),
    ],
)
def test_a_text_of_a_recipe_is_read_as_written_or_refused(line: str, root: str | None, tmp_path: Path) -> None:
    file = written(tmp_path, f"data:\n  name: digits  # they come with scikit-learn\n  root: {line}\n{PHASES}")
    if root is None:
        assert "line 3" in refusal(file)
    else:
        assert recipe.load(file).data.root == root


def test_a_number_may_have_a_comment_of_any_form(tmp_path: Path) -> None:
    file = written(tmp_path, f"data: {{name: digits}}\n{PHASES}run:\n  seed: 7 #lucky\n")
    assert recipe.load(file).run.seed == 7


def test_overrides_leave_the_rest_alone_and_the_later_wins(small: str) -> None:
    config = recipe.load(small, ["run.seed=1", "phases.full.lr=0.2", "run.seed=2"])
    plain = recipe.load(small)
    full = dataclasses.replace(plain.phases["full"], lr=0.2)
    run = dataclasses.replace(plain.run, seed=2)
    assert config == dataclasses.replace(plain, run=run, phases={**plain.phases, "full": full})


def test_exit_weights_of_one_shape_replace_those_of_another(small: str) -> None:
    shapes = {"uniform": "uniform", "[1.0]": (1.0,), "{losses: [1.0]}": {"losses": (1.0,)}}
    for first in shapes:
        for second, value in shapes.items():
            overrides = [f"teacher.exit_weights={first}", f"teacher.exit_weights={second}"]
            assert recipe.load(small, overrides).teacher.exit_weights == value


def test_new_phase_through_overrides_comes_last(small: str) -> None:
    config = recipe.load(small, ["phases.depth.epochs=3", "phases.depth.lr=0.1", "phases.depth.unlock.depth=[3,4]"])
    assert list(config.phases) == ["full", "kernel", "depth"]
    assert config.phases["depth"] == PhaseConfig(3.0, 0.1, UnlockConfig(depth=(3, 4)))


def test_a_runs_folder_is_no_recipe_but_its_recipe_is(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "run.json").write_text("{}")
    message = refusal(str(tmp_path / "my run"))
    assert f"`ofav2 train --resume '{tmp_path}/my run'`" in message
    assert f"`ofav2 train '{tmp_path}/my run/recipe.yaml'`" in message


def test_a_setting_leaves_a_phase_out(small: str) -> None:
    phases = recipe.load(small).phases
    assert recipe.load(small, ["phases.kernel=null"]).phases == {"full": phases["full"]}
    # Of two settings of one key the later one wins: this is a new phase in its place, complete as such.
    anew = "phases.kernel={epochs: 1, lr: 0.5, unlock: {kernel: [3, 7]}}"
    again = recipe.load(small, ["phases.kernel=null", anew]).phases
    assert list(again) == ["full", "kernel"]
    assert again["kernel"].lr == 0.5
    assert refusal(small, "phases.full=null", "phases.kernel=null").startswith("phases ({}): ")


def test_a_phase_that_a_file_leaves_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "forgotten.yaml"
    path.write_text("base: digits\nphases:\n  full: {epochs: 1, lr: 0.1}\n  kernel:\n")
    assert refusal(str(path)).startswith("phases.kernel (null): must be a mapping")


def test_phases_keep_the_files_order(tmp_path: Path) -> None:
    phases = "".join(f"  {name}: {{epochs: 1, lr: 1}}\n" for name in ("z", "a", "m"))
    config = recipe.load(written(tmp_path, f"data: {{name: digits}}\nphases:\n{phases}"))
    assert list(config.phases) == ["z", "a", "m"]
    assert list(recipe.load(written(tmp_path, recipe.dump(config))).phases) == ["z", "a", "m"]


TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), include_characters=" "), min_size=1, max_size=40)
NUMBER = st.floats(1e-300, 1e6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    root=st.one_of(
        st.none(), TEXT, st.sampled_from(["null", "1e3", "yes", "0E0", "1:30", "010", "- a", "a: b", "#", "2024-01-01"])
    ),
    tags=st.lists(TEXT, max_size=3),
    lr=NUMBER,
    weights=st.lists(st.floats(0, 1), max_size=5),
    name=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
)
def test_what_loads_is_written_so_that_it_loads_again(
    tmp_path: Path, root: str | None, tags: list[str], lr: float, weights: list[float], name: str
) -> None:
    values = {
        "data": {"name": "digits", "root": root},
        "tracking": {"tags": tags},
        "phases": {name: {"epochs": 1, "lr": lr}},
        "teacher": {"exit_weights": weights},
    }
    # JSON is YAML in which every text is quoted, so the file means the same to any reader.
    config = outcome(written(tmp_path, json.dumps(values, ensure_ascii=False)))
    if isinstance(config, str):
        assert re.search(r"printable|interpolate|fill in", config)
        return
    assert (config.data.root, config.tracking.tags, config.phases[name].lr) == (root, tuple(tags), lr)
    assert recipe.load(written(tmp_path, recipe.dump(config))) == config


# Refusals


@pytest.mark.parametrize(
    ("override", "key", "value", "rest"),
    [
        ("run.sead=1", "run.sead", "1", "did you mean run.seed?"),
        ("trakcing.mode=offline", "trakcing", '{"mode": "offline"}', "did you mean tracking?"),
        ("batch_size=3", "batch_size", "3", "did you mean data.batch_size or evaluation.batch_size?"),
        (
            "phases.full.unlock.kernal=[3]",
            "phases.full.unlock.kernal",
            "[3]",
            "did you mean phases.full.unlock.kernel?",
        ),
        ("phases.full.epoch=3", "phases.full.epoch", "3", "did you mean phases.full.epochs?"),
        ("zzz=1", "zzz", "1", "choose one of these"),
        ("run.seed=yes", "run.seed", "true", "whole number"),
        ("run.seed='3'", "run.seed", '"3"', "whole number"),
        ("run.seed=1.0", "run.seed", "1.0", "whole number"),
        ("run.seed=", "run.seed", "null", "whole number"),
        ("run.seed=9223372036854775808", "run.seed", "9223372036854775808", "64 bits"),
        ("phases.full.lr=true", "phases.full.lr", "true", "must be a number"),
        ("phases.full.lr='0.1'", "phases.full.lr", '"0.1"', "must be a number"),
        ("phases.full.lr=.inf", "phases.full.lr", "Infinity", "finite"),
        ("phases.full.lr=.nan", "phases.full.lr", "NaN", "finite"),
        ("data.flip=1", "data.flip", "1", "true or false"),
        ("data.name=3", "data.name", "3", "quotes"),
        ("data.name=", "data.name", "null", "text"),
        ("data.resolutions=16", "data.resolutions", "16", "list"),
        ("data.resolutions=[16,'20']", "data.resolutions[1]", '"20"', "whole number"),
        ("data.resolutions=[16,true]", "data.resolutions[1]", "true", "whole number"),
        ("data.resolutions.0=16", "data.resolutions", '{"0": 16}', "given as a whole"),
        ("data.crop_scale=[0.5]", "data.crop_scale", "[0.5]", "list of 2"),
        ("data.mean=[0.5,red]", "data.mean[1]", '"red"', "must be a number"),
        ("run.precision=float23", "run.precision", '"float23"', "did you mean float32?"),
        ("run.precision=", "run.precision", "null", "one of float32, bfloat16"),
        ("teacher.precision=bfloat61", "teacher.precision", '"bfloat61"', "did you mean bfloat16?"),
        ("teacher.precision=16", "teacher.precision", "16", "one of float32, bfloat16"),
        ("data=3", "data", "3", "mapping"),
        ("data=[1]", "data", "[1]", "mapping"),
        ("phases.full.unlock=[3]", "phases.full.unlock", "[3]", "mapping"),
        ("run=", "run", "null", "mapping"),
        ("phases=", "phases", "null", "mapping of phases"),
        ("phases.full=", "phases.full", "null", "mapping of settings; to leave the phase out, write phases.full=null"),
        ("phases.kernl=null", "phases.kernl", "null", "did you mean phases.kernel?"),
        ("phases.full=3", "phases.full", "3", "mapping"),
        ("phases.new.lr=0.1", "phases.new", '{"lr": 0.1}', "the recipe's phases are full, kernel; name one of them"),
        ("phases.kernl.lr=0.1", "phases.kernl", '{"lr": 0.1}', "did you mean phases.kernel?"),
        ("phases={a b: {epochs: 1, lr: 1}}", 'phases."a b"', '{"epochs": 1, "lr": 1}', "letters, digits"),
        ("phases={../a: {epochs: 1, lr: 1}}", 'phases."../a"', '{"epochs": 1, "lr": 1}', "letters, digits"),
        ("phases={2: {epochs: 1, lr: 1}}", "phases.2", '{"epochs": 1, "lr": 1}', "quotes around a number"),
        ("phases." + "a" * 65 + ".lr=1", "phases." + "a" * 65, '{"lr": 1}', "1 to 64"),
        ("teacher.exit_weights=", "teacher.exit_weights", "null", "numbers"),
        ("teacher.exit_weights=[0.5,true]", "teacher.exit_weights[1]", "true", "must be a number"),
        ("teacher.exit_weights={losses: [.nan]}", "teacher.exit_weights.losses[0]", "NaN", "finite"),
        ("tracking.tags=[1]", "tracking.tags[0]", "1", "text"),
        ("phases.full.warmup_epochs=3", "phases.full.warmup_epochs", "3.0", "must not exceed epochs (2.0)"),
        ("phases.full.sampler=sandwich", "phases.full.subnets", "1", "set phases.full.subnets=3"),
    ],
)
def test_wrong_setting_is_named_with_its_value(small: str, override: str, key: str, value: str, rest: str) -> None:
    message = refusal(small, override)
    assert message.startswith(f"{key} ({value}): ")
    assert rest in message


# Each rule's key with values on both sides of every edge.
EDGES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("task", ("classification",), ("''", '"a\\nb"')),
    ("run.seed", ("0", "9223372036854775807"), ("-1",)),
    ("run.threads", ("0", "4", "1024"), ("-1", "1025")),
    ("run.device", ("auto", "cpu", "cuda", "cuda:12", "mps"), ("gpu", "cuda:", "cuda:x", "CPU", "''", "cuda:٣")),
    ("run.save_steps", ("0", "1"), ("-1",)),
    ("run.save_minutes", ("0", "0.5"), ("-1",)),
    ("run.keep_states", ("1",), ("0", "-1")),
    ("run.folder", ("runs", "a b"), ("''", '"a\\0b"')),
    ("data.name", ("digits",), ("''",)),
    ("data.root", ("null", "/a/b"), ("''", '"a\\nb"')),
    ("data.labels", ("null", "labels.csv"), ("''", '"a\\nb"')),
    ("data.resolutions", ("[1]", "[64, 48, 16384]"), ("[]", "[16385]", "[0]", "[-8]", "[16, 16]")),
    ("data.batch_size", ("2",), ("1", "0", "-1")),
    ("data.workers", ("0", "1024"), ("-1", "1025")),
    ("data.cache", ("cache", "~/.cache/ofav2"), ('""', '"a\\nb"')),
    ("data.cache_gib", ("0.001", "64"), ("0", "-1")),
    ("data.shrink_to", ("0", "64", "512"), ("-1", "15")),
    ("data.jitter", ("[0,0,0,0]", "[0.4,2,0.4,0.5]"), ("[0,0,0,0.6]", "[-0.1,0,0,0]", "[3,0,0,0]")),
    ("data.randaugment", ("[0,9]", "[16,30]"), ("[-1,9]", "[17,9]", "[2,31]")),
    ("data.mixup", ("0", "0.2", "100"), ("-0.1", "0.001", "101")),
    ("data.cutmix", ("0", "1.0"), ("-1", "1000")),
    ("data.val_fraction", ("0.001", "0.999"), ("0", "1", "-0.1")),
    ("data.test_fraction", ("0", "0.999"), ("1", "-0.1")),
    ("data.split_seed", ("0",), ("-1",)),
    ("data.crop_scale", ("[1, 1]", "[0.1, 0.2]"), ("[0, 1]", "[0.5, 1.1]", "[0.6, 0.5]")),
    ("data.crop_ratio", ("[1, 1]", "[0.5, 2]"), ("[0, 1]", "[2, 1]", "[-1, 1]")),
    ("data.eval_crop", ("1", "0.1"), ("0", "0.09", "1.001")),
    ("data.mean", ("null", "[0, 0.5, 1]", "[-3, 2000.5]"), ("[]",)),
    ("data.std", ("null", "[0.1, 0.5, 1]", "[900]"), ("[0, 0.5, 1]", "[-1]", "[]")),
    ("data.target", ("null", "cover"), ("''",)),
    ("data.bands", ("null", "[red]"), ("[]", "[red, red]")),
    ("data.classes", ("null", "[tree, crop]"), ("[tree]", "[tree, tree]")),
    ("data.window", ("null", "1", "16384"), ("0", "16385")),
    ("data.window_share", ("0.51", "1"), ("0.5", "1.1")),
    ("data.shots", ("null", "1"), ("0",)),
    ("network.name", ("null",), ("''",)),
    ("network.weights", ("null",), ("''",)),
    ("network.drop_rate", ("0",), ("1", "-0.1")),
    ("supernet.head_width", ("1", "4096"), ("0", "4097")),
    ("supernet.init", ("null", "runs/a"), ("''", '"a\\nb"')),
    ("supernet.variant", ("se_b",), ("''",)),
    ("supernet.width_mult", ("0.05", "20"), ("0.04", "0", "-1", "20.1")),
    ("supernet.kernel", ("[1]", "[7, 3]", "[31]"), ("[]", "[4]", "[3, 3]", "[-3]", "[33]")),
    ("supernet.expand", ("[1]", "[6, 3]", "[16]"), ("[]", "[0]", "[3, 3]", "[17]")),
    ("supernet.depth", ("[1]", "[4, 2]", "[16]"), ("[]", "[0]", "[3, 3]", "[17]")),
    ("supernet.stem_stride", ("1", "2"), ("0", "3")),
    ("phases.full.epochs", ("0.01", "1000000"), ("0", "-1", "1000001")),
    ("phases.full.lr", ("1e-9", "10"), ("0", "-0.1")),
    ("phases.full.warmup_epochs", ("0", "2"), ("-1", "2.1")),
    ("phases.full.subnets", ("1", "1024"), ("0", "1025")),
    ("phases.full.teacher", ("null", "fixed"), ("''",)),
    ("phases.full.networks", ("[]",), ("[x]",)),
    ("phases.full.patience", ("0", "12"), ("-1",)),
    ("phases.full.dropout", ("0", "0.99"), ("1", "-0.1")),
    ("teacher.policy", ("best",), ("''",)),
    ("teacher.checkpoint", ("null", "a.pth"), ("''",)),
    ("teacher.mean", ("null", "[0.5]", "[0, 0.5, 0.5, 1]"), ("[]", "[0, 0.5, 1.1]", "[-0.1]")),
    ("teacher.std", ("null", "[0.5]", "[0.1, 0.5, 0.5, 1]"), ("[]", "[0, 0.5, 1]", "[1.1]")),
    ("teacher.kd_ratio", ("0", "2"), ("-1",)),
    ("optim.momentum", ("0", "0.99"), ("1", "-0.1")),
    ("optim.betas", ("[0, 0.99]",), ("[0, 1]", "[-0.1, 0.9]")),
    ("optim.weight_decay", ("0", "1"), ("-1",)),
    ("optim.label_smoothing", ("0", "0.99"), ("1", "-0.1")),
    ("optim.grad_clip", ("0", "1"), ("-1",)),
    ("optim.loss_jump", ("0", "10"), ("-1",)),
    ("optim.skip_limit", ("0", "3"), ("-1",)),
    ("evaluation.every_epochs", ("0", "0.5"), ("-1", "5e-324")),
    ("evaluation.batch_size", ("1",), ("0",)),
    ("evaluation.calibration_images", ("2",), ("1", "0")),
    ("evaluation.calibration_batch", ("2",), ("1", "0")),
    ("tracking.project", ("ofav2", "a b.c-d_e=f", "x" * 128), ("''", "a/b", "a#b", "a:b", "'a?'", "'a%'", "x" * 129)),
    ("tracking.entity", ("null", "a"), ("''",)),
    ("tracking.tags", ("[]", "[a]", f"[{'x' * 64}]"), ("['']", f"[{'x' * 65}]")),
    ("tracking.every_steps", ("1",), ("0",)),
)


@pytest.mark.parametrize(("key", "good", "bad"), EDGES, ids=lambda value: value if isinstance(value, str) else "")
def test_values_are_held_to_their_range(small: str, key: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    for value in good:
        recipe.load(small, [f"{key}={value}"])
    for value in bad:
        assert refusal(small, f"{key}={value}").startswith(f"{key} (")


def leaves(kind: type[Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema with its kind, the phase `full` or `kernel` standing for all."""
    for name, hint in get_type_hints(kind).items():
        full = f"{key}.{name}" if key else name
        if get_origin(hint) is dict:
            yield from leaves(get_args(hint)[1], f"{full}.full")
        elif dataclasses.is_dataclass(hint):
            yield from leaves(hint, full)  # type: ignore[arg-type]
        else:
            yield full, hint


@pytest.mark.parametrize(
    ("text", "values"),
    [("48..64 step 4", (48, 52, 56, 60, 64)), ("16..16 step 1", (16,)), ("16 .. 24  step 8", None)],
)
def test_whole_numbers_may_be_given_as_a_range(text: str, values: tuple[int, ...] | None) -> None:
    if values is None:
        assert "must be a list or a range" in refusal("digits", f"data.resolutions={text}")
        return
    config = recipe.load("digits", [f"data.resolutions={text}"])
    assert config.data.resolutions == values
    assert f"- {values[0]}\n" in recipe.dump(config)
    assert recipe.load("digits", ["supernet.kernel=3..7 step 2"]).supernet.kernel == (3, 5, 7)


@pytest.mark.parametrize(
    "text",
    [
        "48..64",
        "64..48 step 4",
        "48..64 step 5",
        "48..64 step 0",
        "1..16384 step 1",
        "a..b step 4",
        "48-64",
        "\u0663..\u0667 step 2",
    ],
)
def test_a_range_that_is_none_is_refused(text: str) -> None:
    told = refusal("digits", f"data.resolutions={text}")
    assert told.startswith("data.resolutions (")
    assert "48..64 step 4" in told


def test_every_number_and_text_of_the_schema_has_a_range() -> None:
    ranged = {key.replace("phases.kernel", "phases.full") for key, _, _ in EDGES}
    free = {key for key, hint in leaves(Config) if hint in (bool, Any, Any | None) or "Literal" in str(hint)}
    # The plan compares choices that are unlocked with those that the supernet has.
    free |= {key for key, _ in leaves(Config) if ".unlock." in key}
    assert ranged | free == {key for key, _ in leaves(Config)}
    assert not ranged & free


def test_every_field_of_the_schema_has_its_sentence() -> None:
    classes = [node for node in ast.parse(inspect.getsource(schema)).body if isinstance(node, ast.ClassDef)]
    wholes = {"Config", "TuningConfig"}  # Their fields are the sections above them.
    assert wholes < {node.name for node in classes}
    for node in (node for node in classes if node.name not in wholes):
        kinds = [type(statement) for statement in node.body[1:]]
        assert kinds == [ast.AnnAssign, ast.Expr] * (len(kinds) // 2), node.name


# Bases


def based(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_recipe_is_merged_over_its_base_key_by_key_and_phases_as_a_whole(tmp_path: Path) -> None:
    based(tmp_path, "small.yaml", SMALL + "run: {seed: 3, threads: 2}\noptim: {name: adamw}\n")
    child = based(tmp_path, "child.yaml", "base: small.yaml\nrun: {threads: 1}\ndata: {batch_size: 8}\n")
    config = recipe.load(child, ["phases.full.lr=0.3"])
    plain = recipe.load(str(tmp_path / "small.yaml"), ["phases.full.lr=0.3"])
    run = dataclasses.replace(plain.run, threads=1)
    assert config == dataclasses.replace(plain, run=run, data=DataConfig("digits", batch_size=8))
    other = based(tmp_path, "other.yaml", "base: child.yaml\nphases: {full: {epochs: 9, lr: 1}}\n")
    assert recipe.load(other).phases == {"full": PhaseConfig(9.0, 1.0)}
    assert recipe.load(other).run == run


def test_a_base_is_a_shipped_name_or_a_path_from_the_files_folder(tmp_path: Path) -> None:
    mine = based(tmp_path, "deep/mine.yaml", "base: digits\nrun: {seed: 7}\n")
    assert recipe.load(mine) == recipe.load("digits", ["run.seed=7"])
    based(tmp_path, "digits.yaml", SMALL)
    beside = based(tmp_path, "deep/beside.yaml", "base: ../digits.yaml\n")
    assert recipe.load(beside) == recipe.load(str(tmp_path / "digits.yaml"))
    absolute = based(tmp_path, "absolute.yaml", f"base: {mine}\nrun: {{threads: 1}}\n")
    assert recipe.load(absolute) == recipe.load("digits", ["run.seed=7", "run.threads=1"])


def test_what_is_written_has_no_base(tmp_path: Path) -> None:
    config = recipe.load(based(tmp_path, "mine.yaml", "base: digits\nrun: {seed: 7}\n"))
    text = recipe.dump(config)
    assert list(yaml.safe_load(text)) == list(recipe.SECTIONS)
    assert recipe.parse(text, "the kept text") == config


@pytest.mark.parametrize(
    ("base", "rest"),
    [
        ("digit", "did you mean digits?"),
        ("nowhere.yaml", "there is no such file"),
        ("3", "must be the name of a shipped recipe"),
        ("[digits]", "must be the name of a shipped recipe"),
        ("null", "must be the name of a shipped recipe"),
        ("''", "no shipped recipe has this name"),
        ("mine.yaml", "is based on this recipe itself"),
        ("./mine.yaml", "is based on this recipe itself"),
        ("ring.yaml", "is based on this recipe itself"),
        ("typo.yaml", "run.sead (1): no such key here"),
        ("range.yaml", "run.seed (-1): must be 0 or more"),
        ("half.yaml", "data.name (missing)"),
        ("broken.yaml", "line 3: is not valid YAML"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_by_its_file(base: str, rest: str, tmp_path: Path) -> None:
    based(tmp_path, "ring.yaml", "base: mine.yaml\n")
    based(tmp_path, "typo.yaml", SMALL + "run: {sead: 1}\n")
    based(tmp_path, "range.yaml", SMALL + "run: {seed: -1}\n")
    based(tmp_path, "half.yaml", "run: {seed: 1}\n")
    based(tmp_path, "broken.yaml", "data: {name: digits}\nrun: [\n")
    message = refusal(based(tmp_path, "mine.yaml", f"base: {base}\nrun: {{seed: 1}}\ndata: {{name: digits}}\n"))
    assert message.startswith(f"recipe {tmp_path / 'mine.yaml'}, base (")
    assert rest in message


def test_an_endless_chain_of_bases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    assert "shorten the chain" in refusal(based(tmp_path, "mine.yaml", "base: again/mine.yaml\n"))
    based(tmp_path, "0.yaml", SMALL)
    for number in range(1, 9):
        last = based(tmp_path, f"{number}.yaml", f"base: {number - 1}.yaml\nrun: {{seed: {number}}}\n")
    assert recipe.load(last).run.seed == 8


def test_a_base_stands_in_a_file_alone(small: str) -> None:
    assert refusal(small, "base=digits").startswith('base ("digits"): no such key here')


def test_the_header_is_the_comment_at_the_top(tmp_path: Path) -> None:
    assert (
        recipe.header(based(tmp_path, "mine.yaml", "# One.\n# Two.\n\n# Three.\nbase: digits\n")) == "# One.\n# Two.\n"
    )
    assert recipe.header(based(tmp_path, "bare.yaml", "base: digits\n")) == ""


# The settings of a fine-tuning

TUNING = TuningConfig(
    run=ComputeConfig(), data=DataConfig("digits"), finetune=FinetuneConfig(lr=0.1), optim=OptimConfig()
)
TUNING_EDGES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("finetune.lr", ("1e-9", "10"), ("0", "-0.1")),
    ("finetune.epochs", ("1", "1000000"), ("0", "1000001")),
    ("finetune.patience", ("0", "3"), ("-1",)),
    ("finetune.warmup_epochs", ("0", "30"), ("-1", "30.1")),
    ("finetune.dropout", ("0", "0.99"), ("1", "-0.1")),
    ("finetune.eval_batch_size", ("1",), ("0",)),
)


def tuning_refusal(*overrides: str, file: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        recipe.adjust_tuning(TUNING, file, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "good", "bad"), TUNING_EDGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_fine_tunings_values_are_held_to_their_range(key: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    for value in good:
        recipe.adjust_tuning(TUNING, None, [f"{key}={value}"])
    for value in bad:
        assert tuning_refusal(f"{key}={value}").startswith(f"{key} (")


def test_every_key_of_a_fine_tuning_has_a_range() -> None:
    ranged = {key for key, _, _ in (*EDGES, *TUNING_EDGES)}
    free = {key for key, hint in leaves(TuningConfig) if hint is bool or hint is Any or "Literal" in str(hint)}
    assert {key for key, _ in leaves(TuningConfig)} <= ranged | free
    assert tuning_refusal("run.seed=-1").startswith("run.seed (-1)")


def test_a_fine_tunings_settings_survive_writing_in_their_order() -> None:
    config = recipe.adjust_tuning(
        TUNING, None, ["finetune.exit_weights=[0.5,0.5]", "data.root=a=b", "data.mean=[0,0.5,1]"]
    )
    text = recipe.dump(config)
    assert recipe.parse_tuning(text, "here") == config
    assert list(yaml.safe_load(text)) == ["task", "run", "data", "finetune", "optim"]
    assert list(yaml.safe_load(text)["run"]) == ["seed", "device", "precision", "tf32", "compile", "threads"]


def test_overrides_are_merged_over_a_file_and_both_over_what_was(tmp_path: Path) -> None:
    file = written(tmp_path, "finetune: {lr: 0.2, epochs: 7}\n")
    config = recipe.adjust_tuning(TUNING, file, ["finetune.lr=0.3"])
    assert config == dataclasses.replace(TUNING, finetune=FinetuneConfig(lr=0.3, epochs=7))
    assert recipe.adjust_tuning(TUNING, None, []) == TUNING


def test_what_a_fine_tuning_has_no_use_for_is_refused_with_its_own_keys(tmp_path: Path) -> None:
    assert "no such key here (task, run, data, finetune, optim)" in tuning_refusal("phases.full.lr=1")
    assert "did you mean finetune.lr?" in tuning_refusal("optim.lr=1")
    assert "no such key here (seed, device, precision, tf32, compile, threads)" in tuning_refusal("run.folder=runs")
    assert tuning_refusal(file=str(tmp_path / "no.yaml")).endswith(
        "there is no such file; give the path of a .yaml file"
    )
    assert "no such key here" in tuning_refusal(file=written(tmp_path, SMALL))


@pytest.mark.parametrize("text", ["", "[]", "run: {}", "a: [", "data: {name: digits}\nrun: {}\noptim: {}", "x: ${y}"])
def test_settings_that_were_kept_and_damaged_are_refused_by_their_place(text: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.parse_tuning(text, "the kept text")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["run.seed", "", "=1", "run..seed=1", "+run.seed=1", "run.seed =1", "a[0]=1", "."])
def test_malformed_override_is_refused(small: str, override: str) -> None:
    message = refusal(small, override)
    assert message.startswith("override (")
    assert "key=value" in message


def test_overrides_as_one_text_are_refused(small: str) -> None:
    with pytest.raises(UserError, match="must be a list"):
        recipe.load(small, "run.seed=1")


HOSTILE = (
    ("${oc.env:HOME}", "interpolate"),
    ("a${b", "interpolate"),
    ("[x, '${y}']", "interpolate"),
    ("{'${y}': 1}", "interpolate"),
    ("???", "fill in"),
    ("{<<: {seed: 1}}", "fill in or merge"),
    ("!!python/object/apply:os.system [ls]", "tag"),
    ("!!python/name:os.system ''", "tag"),
    ("!!binary aGk=", "tag"),
    ("!!float 3", "tag"),
    ("&a 1", "anchor"),
    ("[&a [x], *a]", "anchor"),
    ("{a: 1, a: 2}", "duplicate key a"),
    ("{a: {b: 1, b: 2}}", "duplicate key b"),
    ("{[a]: 1}", "YAML"),
    ("{~: 1}", "cannot be read"),
    ("[1,", "YAML"),
    ("a: b: c", "YAML"),
    ("'", "YAML"),
    ("@a", "YAML"),
    ("\x00", "YAML"),
    ("\x1b[31m", "YAML"),
    ("[" * 5000, "deeper"),
    ("{a: " * 5000, "deeper"),
    ("9" * 5000, "longer"),
    ("1:1" * 5000, "longer"),
)


@pytest.mark.parametrize(("value", "rest"), HOSTILE)
def test_hostile_yaml_is_refused_in_overrides(small: str, value: str, rest: str) -> None:
    message = refusal(small, f"data.root={value}")
    assert message.startswith("override data.root=")
    assert rest in message


@pytest.mark.parametrize(("value", "rest"), HOSTILE)
def test_hostile_yaml_is_refused_in_files(tmp_path: Path, value: str, rest: str) -> None:
    path = written(tmp_path, f"{SMALL}run:\n  folder: {value}\n")
    message = refusal(path)
    assert message.startswith(f"recipe {path}")
    assert rest in message


def test_the_environment_is_not_read(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFAV2_SECRET", "hunter2")
    assert "hunter2" not in refusal(small, "data.root=${oc.env:OFAV2_SECRET}")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", "must be a mapping"),
        ("# only a comment\n", "must be a mapping"),
        ("digits", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        (f"{SMALL}---\n{SMALL}", "another document"),
        (f"{SMALL}data: {{name: digits}}\n", "line 5: is not valid YAML (found duplicate key data)"),
        (f"{SMALL}1: 2\n", "1 (2): no such key"),
        (f"{SMALL}a: &x 1\nb: *x\n", "line 5: anchor or alias"),
        ("phases: {full: {epochs: 1, lr: 1}}", "data.name (missing)"),
        ("data: {root: x}\nphases: {full: {epochs: 1, lr: 1}}", "data.name (missing)"),
        ("data: {name: digits}", "phases ({}): must be at least one phase"),
        ("data: {name: digits}\nphases: {}", "phases ({}): must be at least one phase"),
        ("data: {name: digits}\nphases: [full]", 'phases (["full"]): must be a mapping'),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"#" * (2**20 + 1), "larger than 1048576 bytes"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "anchor"),
    ],
)
def test_unfit_file_is_refused(tmp_path: Path, text: str | bytes, rest: str) -> None:
    assert rest in refusal(written(tmp_path, text))


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, small: str) -> None:
    assert recipe.load(written(tmp_path, b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())) == recipe.load(small)


@pytest.mark.parametrize("name", ["digit", "Digits", "tiny_imagenet_papr"])
def test_near_miss_of_a_recipe_is_named(name: str) -> None:
    assert refusal(name).endswith(f"did you mean {'digits' if 'igit' in name else 'tiny_imagenet_paper'}?")
    with pytest.raises(UserError, match="did you mean"):
        recipe.describe(name)


@pytest.mark.parametrize("name", ["zzz", "", "a\nb", "\x1b[31m", "x" * 5000, "__init__"])
def test_unknown_recipe_lists_what_there_is(name: str) -> None:
    message = refusal(name)
    assert all(shipped in message for shipped in recipe.names())


@pytest.mark.parametrize("path", ["nowhere/a.yaml", "a.yaml", "./digits", "a\0b.yaml", "x" * 5000 + ".yaml", "../"])
def test_missing_file_is_named(path: str) -> None:
    assert refusal(path).startswith("recipe ")


def test_folder_and_device_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "no such file" in refusal(str(tmp_path / "folder.yaml"))
    assert "no such file" in refusal("/dev/zero")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.binary(max_size=60), st.text("abdn:{}[]&*!?-#'\",|>%@ \n\t1.~<$=", max_size=60).map(str.encode))
)
def test_any_file_loads_or_is_refused(tmp_path: Path, text: bytes) -> None:
    refusal(written(tmp_path, text))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        ["run.seed", "data", "data.mean", "phases", "phases.full.lr", "teacher.exit_weights", "run.folder"]
    ),
    value=st.text("abdny:{}[]&*!?-#'\",|>%@ \n\t123.e~<$=", max_size=30),
)
def test_any_override_is_taken_or_refused(small: str, key: str, value: str) -> None:
    config = outcome(small, f"{key}={value}")
    if isinstance(config, str):
        assert len(config.splitlines()) == 1
    else:
        assert config.phases["full"].epochs == 2.0


def test_a_mapping_may_have_long_lists(tmp_path: Path) -> None:
    """A description of patches names thousands of them; YAML's aliases stay refused."""
    values = {"format": "some", "parts": [{"patches": [*range(6_000)]}, {"patches": [*range(6_000)]}]}
    recipe.write_mapping(tmp_path / "patches.yaml", values)
    assert recipe.read_mapping(tmp_path / "patches.yaml", "correct it") == values
    (tmp_path / "alias.yaml").write_text("a: &x [1, 2]\nb: *x\n", encoding="utf-8")
    with pytest.raises(UserError, match="alias"):
        recipe.read_mapping(tmp_path / "alias.yaml", "correct it")
