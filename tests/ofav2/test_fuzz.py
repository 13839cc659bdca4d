"""Whatever is given, it is accepted or refused with the project's own error; never a bare traceback.

The examples are derived from fixed seeds, so that two runs of the tests try the same.
"""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ofav2.training.run
import ofav2.training.setup
import supernets
from ofav2.cli.main import VERBS as VERBS_OF_THE_COMMAND
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.config.schema import TeacherConfig
from ofav2.data import open_data
from ofav2.runs.records import Run
from ofav2.training.phases import plan_table
from supernets import Space, Subnet
from tests.ofav2 import tiny
from tests.ofav2.fuzzing import JUNK, NUMBERS, VALUES, WORDS, accepted, changed, damaged_texts, fuzz, paths

DIGITS = yaml.safe_load((Path(recipe.__file__).parents[2] / "recipes" / "digits.yaml").read_text(encoding="utf-8"))


def keys() -> list[str]:
    """Every key of the digits recipe in full, and some that are none."""
    full = [".".join(map(str, path)) for path in paths(DIGITS) if not any(isinstance(step, int) for step in path)]
    return [*full, "phases.new.lr", "phases.kernel.unlock.level", "data.mean.0", "run.sead", "", ".", "a..b", "run."]


OVERRIDES = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(keys()), VALUES.map(json.dumps) | WORDS)


# Recipes


def load(text: str, path: Path) -> Any:
    """The recipe of a text; None if it is refused."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return accepted(lambda: recipe.load(str(path)))


def assert_comes_back(config: Any, path: Path) -> None:
    if config is not None:
        path.write_text(recipe.dump(config), encoding="utf-8")
        assert recipe.load(str(path)) == config


@fuzz(120)
@given(text=st.text() | st.builds(str, VALUES) | VALUES.map(json.dumps) | damaged_texts(yaml.safe_dump(DIGITS)))
def test_texts(text: str, tmp_path: Path) -> None:
    assert_comes_back(load(text, tmp_path / "a.yaml"), tmp_path / "b.yaml")


@fuzz(40)
@given(content=st.binary(max_size=300))
def test_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    assert accepted(lambda: recipe.load(str(tmp_path / "a.yaml"))) is None


@fuzz(120)
@given(data=st.data())
def test_structures(data: st.DataObject, tmp_path: Path) -> None:
    text = json.dumps(changed(DIGITS, data.draw, VALUES))
    assert_comes_back(load(text, tmp_path / "a.yaml"), tmp_path / "b.yaml")


@fuzz(120)
@given(overrides=st.lists(OVERRIDES | WORDS, max_size=4))
def test_overrides(overrides: list[str], tmp_path: Path) -> None:
    assert_comes_back(accepted(lambda: recipe.load("digits", overrides)), tmp_path / "b.yaml")


@fuzz(60)
@given(name=WORDS)
def test_names_of_recipes(name: str) -> None:
    assert accepted(lambda: recipe.load(name)) is None or name == "digits"


@pytest.fixture
def _weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supernets without memory for their weights, which fuzzed widths would fill; and data that are read once."""
    digits = open_data(recipe.load("digits").data)
    create = supernets.create

    def on_paper(*arguments: Any, **named: Any) -> Any:
        with torch.device("meta"):
            return create(*arguments, **named)

    def read_once(config: Any, split: Any) -> Any:
        return digits if config == recipe.load("digits").data else open_data(config, split)

    monkeypatch.setattr(supernets, "create", on_paper)
    monkeypatch.setattr(ofav2.training.setup, "open_data", read_once)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


PLANNED = [
    key for key in keys() if key.startswith(("phases", "supernet", "teacher", "data.res", "data.batch", "optim"))
]
LIKELY = st.sampled_from(
    [
        *("[1]", "[2, 3]", "[3, 5, 7]", "[2, 3, 4]", "[3, 4, 6]", "[4, 5]", "[1, 2, 3, 4, 5]", "[16]", "[8, 16]"),
        *("{kernel: [5, 7]}", "{level: [2, 3]}", "{height: [1, 5]}", "{depth: [4]}", "{kernel: [5, 7], expand: [6]}"),
        *("{}", "ee_b", "se_b", "se_p", "0.05", "1.2", "1", "2", "best", "fixed", "none", "timm:nothing", "sandwich"),
        *("descending", "[0.2, 0.2, 0.2, 0.2, 0.2]", "{losses: uniform, ensemble: mixed}", "[0.5, 0.5, 0, 0, 0]"),
    ]
)


@pytest.mark.usefixtures("_weightless")
@fuzz(50)
@given(
    overrides=st.lists(
        st.builds(lambda key, value: f"{key}={value}", st.sampled_from(PLANNED), LIKELY | NUMBERS.map(str)),
        min_size=1,
        max_size=3,
    )
)
def test_plans(overrides: list[str]) -> None:
    """What a recipe's values mean together is worked out before anything is computed."""
    setup = accepted(
        lambda: ofav2.training.setup.prepare(recipe.load("digits", ["supernet.width_mult=0.1", *overrides]))
    )
    if setup is not None:
        assert len(plan_table(setup.plan)[1]) == len(setup.plan.phases) <= setup.plan.steps


# Sub-networks

SPACE = Space((16, 20), (3, 5), (2, 3), (1, 2), (1, 2, 3), (4, 5), blocks=2, branches=("mbconv", "conv", "transform"))


@fuzz(150)
@given(data=st.data())
def test_subnet_fields(data: st.DataObject) -> None:
    subnet = SPACE.sample(np.random.default_rng([data.draw(st.integers(0, 99))]))
    found = accepted(lambda: Subnet.from_dict(changed(subnet.to_dict(), data.draw, JUNK)))
    if found is not None:
        assert Subnet.from_json(found.to_json()) == found
        code = accepted(lambda: SPACE.encode(found))
        assert (code is not None) == (found in SPACE)
        assert code is None or SPACE.decode(code) == found


@fuzz(80)
@given(text=st.text() | JUNK.map(repr) | VALUES.map(json.dumps) | damaged_texts(SPACE.largest().to_json()))
def test_subnet_texts(text: str) -> None:
    found = accepted(lambda: Subnet.from_json(text))
    assert found is None or Subnet.from_json(found.to_json()) == found


@fuzz(150)
@given(data=st.data())
def test_encodings(data: st.DataObject) -> None:
    subnet = SPACE.sample(np.random.default_rng([data.draw(st.integers(0, 99))]))
    code = data.draw(
        st.just(changed(list(SPACE.encode(subnet)), data.draw, st.integers(-3, 70) | JUNK))
        | st.lists(st.integers(-(2**40), 2**40), max_size=40)
        | JUNK
    )
    found = accepted(lambda: SPACE.decode(code))
    assert found is None or SPACE.encode(found) == tuple(code)


# The command line


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arguments are read and recipes loaded; what would compute is replaced."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    (tmp_path / "subnet.json").write_text(SPACE.largest().to_json())
    for name, facts in {
        "foreign": {},
        "blank": {"format": "ofav2-run/1"},
        "odd": {"format": "ofav2-run/1", "phases": 3},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    done = Run(tmp_path / "empty", {"test": {"largest": 0.5}})

    def train(name: str, overrides: Any = (), run_dir: Any = None) -> Run:
        recipe.load(name, overrides)
        return done

    monkeypatch.setattr(ofav2.training.run, "train", train)
    monkeypatch.setattr(ofav2.training.setup, "prepare", lambda config: tiny_setup())


def tiny_setup() -> Any:
    net = tiny.tiny_net()
    plan = ofav2.training.setup.make_plan(tiny.two_phases(), TeacherConfig("progressive"), net.space, 1)
    config = recipe.load("digits")
    return type("Setup", (), {"plan": plan, "data": tiny.tiny_data(), "config": config})


VERBS = tuple(verb.name for verb in VERBS_OF_THE_COMMAND)
OPTIONS = (
    *("--help", "--version", "--run-dir", "--resume", "--allow-change", "--subnet", "--split", "--phase", "--largest"),
    *(
        "--smallest",
        "--exits",
        "--out",
        "--batch",
        "--threads",
        "--table",
        "--max-macs",
        "--max-params",
        "--max-memory",
    ),
    *("--max-latency", "--exit", "--resolution", "--candidates", "--seed", "--nonsense", "--", "-", "-h"),
)
THINGS = st.sampled_from(
    [
        *("digits", "cifar10", "nowhere", "nowhere.yaml", "empty", "file", "foreign", "blank", "odd", "subnet.json"),
        *("auto", "val", "all", "last", "2,4", "3..5", "30M", "8ms", "512KiB", "1", "-1", "0", "1e9", "9" * 5000),
        *("x" * 300, "a/" * 200, "run.seed=1", "run.seed=x", "=", "=1", "empty=1"),
    ]
)


@st.composite
def commands(draw: Callable[[Any], Any]) -> list[str]:
    verb = draw(st.sampled_from(VERBS) | st.sampled_from(["", "trian", "--version"]))
    words = draw(st.lists(THINGS | st.sampled_from(OPTIONS) | WORDS | OVERRIDES, max_size=6))
    # Nothing outside the test's own folder is touched; a zero byte is what no command line can hold.
    return [verb, *(word for word in words if not word.startswith(("/", "~", "..")) and "\x00" not in word)]


@pytest.mark.usefixtures("_no_training")
@fuzz(220)
@given(arguments=commands())
def test_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as ended:
        # argparse's own refusal and help.
        code = ended.code
    output = capsys.readouterr().err
    assert code in (0, 2)
    assert "Traceback" not in output
    assert code == 0 or output.splitlines()[-1].startswith("ofav2: ") or ": error: " in output, output


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", ["nowhere", "empty", "file", "foreign", "blank", "odd", "x" * 300, "a\nb", "\udcff"])
def test_every_verb_refuses_what_is_no_run_and_no_recipe(
    verb: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"extract": ["--largest", "--out", "new"], "import-ofa": ["digits", "--out", "new"], "compare": [what]}
    more["finetune"] = ["--out", "new"]
    more["prune"] = ["--out", "new"]
    more["predict"] = [what]
    more["train"] = ["--resume", what]
    more["patches"] = ["--out", "new"]
    first = {"train": [], "patches": ["tif", what]}
    assert main([verb, *first.get(verb, [what]), *more.get(verb, [])]) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("ofav2: ") or verb == "compare"
    assert not Path("new").exists()


def test_the_alphabet_of_names_is_the_one_that_files_may_have(tmp_path: Path) -> None:
    """Phases name files of the run folder: whatever a recipe calls them, they stay in it."""
    phase = json.dumps({"epochs": 1, "lr": 0.1})
    for character in {*string.printable, *"äß\u202e\x00\ud800😀"}:
        name = f"a{character}b"
        text = json.dumps({"data": {"name": "digits"}, "phases": {name: json.loads(phase)}})
        config = load(text, tmp_path / "a.yaml")
        assert (config is not None) == (character in string.ascii_letters + string.digits + "_-")
    for name in ("", ".", "..", "../x", "a" * 65):
        text = json.dumps({"data": {"name": "digits"}, "phases": {name: json.loads(phase)}})
        assert load(text, tmp_path / "a.yaml") is None
