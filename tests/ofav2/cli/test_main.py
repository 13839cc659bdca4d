"""The command line: what each verb shows, and one clear line, with a next step, for whatever cannot be done."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.io import write_png

import ofav2
import ofav2.nas.latency_table
from ofav2.cli import main as cli
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.evaluation.corners import keeps_mbconv
from ofav2.runs import folder
from ofav2.runs.records import Run, read_run
from ofav2.tasks.class_results import share_error
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes, write_image

ROOT = Path(__file__).resolve().parents[3]
VERBS = tuple(verb.name for verb in cli.VERBS)
Capture = pytest.CaptureFixture[str]


def run_ok(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """What a command that works writes to stdout and stderr."""
    capsys.readouterr()
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    return out, err


def refusal(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("ofav2: ")
    assert "Traceback" not in err
    return err.removeprefix("ofav2: ").rstrip("\n")


def process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A real process of the command."""
    return subprocess.run(
        [sys.executable, "-m", "ofav2", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def two(tmp_path: Path) -> str:
    return tiny.written(tmp_path / "recipes", tiny.TWO, "two")


# Settings


def test_settings_may_stand_on_either_side_of_options(two: str, tmp_path: Path, capsys: Capture) -> None:
    run_ok(capsys, "train", two, "run.seed=2", "--run-dir", str(tmp_path / "run"), "run.seed=3")
    assert recipe.load(str(tmp_path / "run" / folder.RECIPE)).run.seed == 3


@pytest.mark.parametrize("left", ["surplus", "=3", "--seed=3", "-x"])
def test_what_is_no_setting_is_refused(left: str, two: str, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", two, "--run-dir", str(tmp_path / "run"), left])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {left}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_verb_without_settings_takes_none(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tiny_run.folder), "--out", str(tmp_path / "page.html"), "run.seed=3"])
    assert "unrecognized arguments: run.seed=3" in capsys.readouterr().err


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_points_on(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "next:" in shown
    assert re.search(rf"^examples:\n  ofav2 {verb} ", shown, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_alone_shows_its_verbs_and_examples(arguments: list[str], capsys: Capture) -> None:
    if arguments:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
    else:
        assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert all(re.search(rf"^    {verb}\b", shown, re.MULTILINE) for verb in VERBS)


def commands_in(text: str) -> list[list[str]]:
    """Arguments of every `ofav2 …` line of an examples block."""
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines()]
    return [line.split(" > ")[0].split()[1:] for line in lines if line.startswith("ofav2 ") and "…" not in line]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_examples_are_commands_that_the_parser_takes(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    examples = commands_in(capsys.readouterr().out)
    assert examples
    for arguments in examples:
        parsed = cli.parser().parse_args(arguments)
        named = getattr(parsed, "recipe", None)
        if named and not named.endswith(".yaml") and "=" not in named:
            recipe.load(named, parsed.overrides)


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    code = """
import sys
from ofav2.cli.main import main
for arguments in (
    ["--help"],
    ["help", "train"],
    ["trian"],
    ["recipes"],
    ["recipes", "digits"],
    ["settings"],
    ["settings", "no"],
    ["train"],
    ["train", "no"],
    ["train", "digits", "run.sed=1"],
    ["plan", "digits", "data.batch_size=0"],
):
    try:
        main(arguments)
    except SystemExit:
        pass
late = {"torch", "timm", "wandb", "torchvision", "sklearn"} & set(sys.modules)
sys.exit(f"imported: {late}" if late else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_is_a_verb_too(capsys: Capture) -> None:
    for words, option in ((["help"], ["--help"]), (["help", "plan"], ["plan", "--help"])):
        shown = []
        for arguments in (words, option):
            with pytest.raises(SystemExit) as left:
                main(arguments)
            assert left.value.code == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "digits"], "did you mean `ofav2 train`?"),
        (["qqq"], "choose one of recipes"),
        (["train", "digits", "--batch-size", "5"], "evaluation.batch_size=VALUE"),
        (["train", "digits", "--lr=5"], "phases.NAME.lr=VALUE or finetune.lr=VALUE"),
    ],
)
def test_what_was_meant_is_named(words: list[str], hint: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert hint in capsys.readouterr().err


# Verbs that work


def test_settings_are_looked_up(capsys: Capture) -> None:
    out, _ = run_ok(capsys, "settings", "phases.full.epochs")
    assert out.splitlines()[0] == "phases.NAME.epochs = (no default)"
    out, _ = run_ok(capsys, "settings")
    assert "\nrun.seed = 0\n" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "did you mean data.batch_size?" in refusal(capsys, "settings", "data.batchsize")


def test_what_is_next_can_be_pasted(capsys: Capture) -> None:
    _, err = run_ok(capsys, "recipes", "digits", "data.resolutions=[16,20]")
    assert "next: ofav2 plan digits 'data.resolutions=[16,20]'\n" in err


def test_recipes_are_listed_with_what_they_train(capsys: Capture) -> None:
    out, err = run_ok(capsys, "recipes")
    assert all(f"{name} " in out and recipe.describe(name) in out for name in recipe.names())
    assert "next: ofav2 plan" in err


@pytest.mark.parametrize("settings", [[], ["run.seed=7", "phases.expand.lr=0.5"]])
def test_a_recipe_is_printed_in_full_with_its_header(settings: list[str], tmp_path: Path, capsys: Capture) -> None:
    out, err = run_ok(capsys, "recipes", "cifar10", *settings)
    assert out.startswith("# Train an early-exit, dense supernet (EE_D) on CIFAR-10")
    assert "base:" not in out
    (tmp_path / "mine.yaml").write_text(out)
    assert recipe.load(str(tmp_path / "mine.yaml")) == recipe.load("cifar10", settings)
    assert f"next: ofav2 plan {' '.join(['cifar10', *settings])}" in err


def test_a_setting_without_a_recipe_is_refused(capsys: Capture) -> None:
    assert "name a recipe before it" in refusal(capsys, "recipes", "run.seed=1")


def test_a_run_of_a_recipe_with_a_base_keeps_it_resolved(two: str, tmp_path: Path, capsys: Capture) -> None:
    mine = tiny.written(tmp_path / "recipes", "base: two.yaml\nrun: {seed: 5}\n", "mine")
    run_ok(capsys, "train", mine, "--run-dir", str(tmp_path / "run"))
    (tmp_path / "recipes" / "two.yaml").unlink()
    kept = recipe.load(str(tmp_path / "run" / folder.RECIPE))
    assert (kept.run.seed, kept.supernet.variant) == (5, "se_b")


def test_a_plan_shows_every_phase_and_writes_nothing(
    two: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = run_ok(capsys, "plan", two, "phases.full.epochs=1")
    assert re.search(r"^full +nothing +1 +106 +0\.003 +largest +none$", out, re.MULTILINE)
    assert re.search(r"^kernel +kernel 3, 5 +0\.02 +2 +0\.001 +1 uniform +progressive$", out, re.MULTILINE)
    # The recipe's path may be as long as it likes.
    assert max(len(line) for line in out.splitlines() if line != two) <= 80
    assert "height is skipped" in out
    assert "in all 108 steps of 16 images" in out
    assert f"next: ofav2 train {two} phases.full.epochs=1" in err
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


def test_a_plan_counts_photos_that_are_turned(tmp_path: Path, capsys: Capture) -> None:
    write_classes(tmp_path / "images", {"cat": 20, "dog": 20})
    exif = Image.Exif()
    exif[0x0112] = 8
    for path in sorted((tmp_path / "images" / "cat").iterdir())[:3]:
        with Image.open(path) as image:
            image.save(path, exif=exif)
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    out, _ = run_ok(capsys, "plan", tiny.written(tmp_path, text))
    assert "3 of 40 images have an EXIF orientation and are turned upright (data.exif_orientation=true)" in out
    out, _ = run_ok(capsys, "plan", tiny.written(tmp_path, text), "data.exif_orientation=false")
    assert "3 of 40 images have an EXIF orientation and stay as they are stored (data.exif_orientation=false)" in out


def test_a_plan_tells_images_by_class_their_sizes_and_costs(tmp_path: Path, capsys: Capture) -> None:
    write_classes(tmp_path / "images", {"cat": 40, "dog": 8})
    write_image(tmp_path / "images" / "dog" / "large.jpg", (40, 30))
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    mine = tiny.written(tmp_path, text)
    out, _ = run_ok(capsys, "plan", mine)
    title, heading, _, cat, dog, uneven = out.splitlines()[:6]
    assert title == "imagefolder: 45 train, 2 val, 2 test images of 10 x 12, 30 x 40 pixels (smallest, median, largest)"
    assert [line.split() for line in (heading, cat, dog)] == [
        ["class", "train", "val", "test"],
        ["cat", "38", "1", "1"],
        ["dog", "7", "1", "1"],
    ]
    assert uneven.startswith("cat has 38 training images, dog 7: data.balance=classes")
    assert "data.balance=classes draws" not in run_ok(capsys, "plan", mine, "data.balance=classes")[0]
    found = json.loads(run_ok(capsys, "plan", mine, "--json")[0])
    assert found["classes"] == {"cat": [38, 1, 1], "dog": [7, 1, 1]}
    for name in ("largest", "smallest"):
        shown, cost = found["networks"][name]
        assert re.search(rf"^{name} +{cost['params']:,} +{cost['macs']:,} +{re.escape(shown)}$", out, re.MULTILINE)


def test_the_demos_plan_has_all_six_phases(capsys: Capture) -> None:
    out, _ = run_ok(capsys, "plan", "digits")
    listed = [line.split()[0] for line in out.splitlines()[3:] if line]
    assert "digits: 1,222 train, 216 val, 359 test images of 8 x 8 pixels" in out
    assert [name for name in listed if name in tiny.SIX_PHASES] == list(tiny.SIX_PHASES)


def test_training_says_what_it_made_and_what_to_do_next(two: str, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    out, err = run_ok(capsys, "train", "--run-dir", str(run), two, "run.seed=3")
    assert out == f"{run}\n", "the folder alone, to be piped on"
    assert read_run(run).status == "finished"
    assert read_run(run).seed == 3
    assert f"made {run}: largest sub-network" in err
    next_steps = err[err.index("next:") :]
    for line in next_steps.removeprefix("next:").splitlines():
        cli.parser().parse_args(line.split()[1:])


def test_evaluate_shows_the_corners_on_test(tiny_run: Run, capsys: Capture) -> None:
    out, err = run_ok(capsys, "evaluate", str(tiny_run.folder))
    title, _, _, *rows = out.splitlines()
    assert title == f"{tiny_run.folder}, phase expand, test"
    corners = ofav2.load_supernet(tiny_run.folder).space.corners()
    assert len(rows) == len([subnet for subnet in corners if keeps_mbconv(subnet)])
    assert f"{len(corners) - len(rows)} corners without MBConv are left out" in err
    shown = {re.split(r"\s{2,}", row)[0]: float(row.split()[-4]) for row in rows}
    largest = str(ofav2.load_supernet(tiny_run.folder).space.largest())
    top1 = tiny_run.record.test.largest
    assert shown[largest] == pytest.approx(100 * top1, abs=0.005)
    assert f" ± {100 * share_error(top1, 50):.2f} %" in next(row for row in rows if row.startswith(largest))
    assert "next: ofav2 extract" in err


def test_evaluate_shows_an_extracted_network_by_class(extracted: Path, capsys: Capture) -> None:
    out, err = run_ok(capsys, "evaluate", str(extracted), "--split", "val")
    found = ofav2.evaluate_network(extracted, split="val")
    lines = out.splitlines()
    worst = min(score.accuracy for score in found.classes if score.accuracy is not None)
    assert f"{100 * worst:.2f} %" in lines[3], "the worst class comes first"
    shares = f"top-1 {100 * found.results.accuracy:.2f} %, standard error {100 * found.standard_error:.2f} %"
    assert lines[-1].startswith(f"{found.results.total} images: {shares}")
    assert "next: ofav2 predict" in err


def test_options_of_a_run_are_refused_for_a_network_and_the_other_way_round(
    extracted: Path, tiny_run: Run, capsys: Capture
) -> None:
    assert "--phase (full) has no effect" in refusal(capsys, "evaluate", str(extracted), "--phase", "full")
    assert "on its own data" in refusal(capsys, "evaluate", str(tiny_run.folder), "data.root=x")


def test_predict_prints_tables_json_and_csv(extracted: Path, tmp_path: Path, capsys: Capture) -> None:
    photo = tmp_path / "a, b\x1b[2J.png"
    write_png(torch.zeros(3, 9, 9, dtype=torch.uint8), str(photo))
    (found,) = ofav2.load_classifier(extracted)([photo], top=2)
    out, _ = run_ok(capsys, "predict", str(extracted), str(tmp_path), "--top", "2")
    assert "\x1b" not in out
    assert f"{100 * found.probabilities[0]:.2f} %" in out
    out, _ = run_ok(capsys, "predict", str(extracted), str(photo), "--json", "--top", "2")
    answer = json.loads(out)
    assert (answer["image"], tuple(answer["classes"]), answer["exit"]) == (str(photo), found.classes, found.exit)
    out, _ = run_ok(capsys, "predict", str(extracted), str(photo), "--csv", "--top", "2")
    rows = [*csv.DictReader(out.splitlines())]
    assert [(row["image"], row["rank"], row["class"]) for row in rows] == [
        (str(photo), str(rank), name) for rank, name in enumerate(found.classes, start=1)
    ]


def test_predict_names_bad_images_and_goes_on(extracted: Path, tmp_path: Path, capsys: Capture) -> None:
    write_png(torch.zeros(3, 9, 9, dtype=torch.uint8), str(tmp_path / "good.png"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert main(["predict", str(extracted), str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "good.png" in out
    assert "bad.png" in err
    assert "1 of 2 images can't be classified" in err
    assert "--top (0) must be 1 or more" in refusal(capsys, "predict", str(extracted), str(tmp_path), "--top", "0")


def test_evaluate_takes_a_file_a_split_and_a_phase(
    tiny_run: Run, extracted: Path, tmp_path: Path, capsys: Capture
) -> None:
    subnet = ofav2.load_supernet(tiny_run.folder, "kernel").space.uniform(kernel=3)
    (tmp_path / "mine.json").write_text(subnet.to_json())
    arguments = ("--subnet", str(tmp_path / "mine.json"), "--split", "val", "--phase", "kernel")
    out, _ = run_ok(capsys, "evaluate", str(tiny_run.folder), *arguments)
    assert out.splitlines()[0] == f"{tiny_run.folder}, phase kernel, val"
    assert len(out.splitlines()) == 4
    assert str(subnet) in out

    out, _ = run_ok(capsys, "evaluate", str(tiny_run.folder), "--subnet", str(extracted / "subnet.json"))
    record = ofav2.describe_subnet(extracted)
    assert float(out.split()[-4]) == pytest.approx(100 * record.scores["test"][3], abs=0.005)


@pytest.mark.parametrize("which", ["--largest", "--smallest"])
def test_extract_shows_accuracy_before_and_after(which: str, tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    out, err = run_ok(
        capsys, "extract", str(tiny_run.folder), which, "--out", str(tmp_path / "out"), "--formats", "card"
    )
    record = ofav2.describe_subnet(tmp_path / "out")
    space = ofav2.load_supernet(tiny_run.folder).space
    assert record.subnet == (space.largest() if which == "--largest" else space.smallest())
    assert record.extraction is not None
    for split in ("val", "test"):
        before, after = (
            scores[split][record.subnet.height] for scores in (record.extraction.scores_before, record.scores)
        )
        assert re.search(rf"\b{split} +{100 * before:.2f} ± \S+ % +{100 * after:.2f} ± \S+ %$", out, re.MULTILINE)
    assert f"made {tmp_path / 'out'}: {record.cost.params:,} parameters" in err
    assert f"ofav2 predict {tmp_path / 'out'} IMAGE" in err


def test_extract_takes_an_earlier_phase(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    arguments = ("--phase", "full", "--largest", "--exits", "all", "--formats", "none", "--out", str(tmp_path / "o"))
    _, err = run_ok(capsys, "extract", str(tiny_run.folder), *arguments)
    assert ofav2.describe_subnet(tmp_path / "o").provenance.phase == "full"
    assert f"ofav2 calibrate {tmp_path / 'o'}" in err


def test_extract_takes_a_file(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    subnet = ofav2.load_supernet(tiny_run.folder).space.uniform(height=2, depth=1)
    (tmp_path / "mine.json").write_text(subnet.to_json())
    files = ("--subnet", str(tmp_path / "mine.json"), "--out", str(tmp_path / "o"))
    run_ok(capsys, "extract", str(tiny_run.folder), *files, "--formats", "none")
    assert json.loads((tmp_path / "o" / "subnet.json").read_text())["subnet"] == subnet.to_dict()


@pytest.mark.parametrize("verb", ["extract", "finetune"])
def test_formats_that_do_not_exist_are_refused_before_anything_is_opened(
    verb: str, tmp_path: Path, capsys: Capture
) -> None:
    nowhere = str(tmp_path / "nowhere")
    printed = refusal(capsys, verb, nowhere, "--out", str(tmp_path / "out"), "--formats", "onnx,tflite")
    assert printed == "formats (tflite): must be out of onnx, pt2, card, or none; leave it out for all"


# Recipes that cannot be used


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("digit", [], r"^recipe \(.digit.\).*did you mean digits\?"),
        ("nowhere.yaml", [], r"^recipe nowhere\.yaml: there is no such file"),
        ("digits", ["run.sed=1"], r"^run\.sed \(1\): no such key here .*did you mean run\.seed\?"),
        ("digits", ["data.resolution=[16]"], r"^data\.resolution .*did you mean data\.resolutions\?"),
        ("digits", ["phases.full.epoch=3"], r"^phases\.full\.epoch .*did you mean phases\.full\.epochs\?"),
        ("digits", ["phases.fulll.lr=3"], r"^phases\.fulll .*did you mean phases\.full\?"),
        ("digits", ["banana=3"], r"^banana \(3\): no such key"),
        ("digits", ["data.batch_size=many"], r'^data\.batch_size \("many"\): must be a whole number'),
        ("digits", ["data.resolutions=16"], r"^data\.resolutions \(16\): must be a list"),
        ("digits", ["data.flip=maybe"], r"^data\.flip \(.maybe.\): must be true or false"),
        ("digits", ["run.seed"], r'^override \("run\.seed"\): must read key=value'),
        ("digits", ["phases.depth.unlock.depth=[2,3,4,5]"], r"^phases\.depth\.unlock\.depth \(5\) .*among 2, 3, 4"),
        ("digits", ["phases.kernel.unlock.kernel=[4,7]"], r"^phases\.kernel\.unlock\.kernel \(4\) .*among 3, 5, 7"),
        ("digits", ["supernet.kernel=[3,4,7]"], r"^supernet\.kernel \(4\) must be odd"),
        ("digits", ["supernet.depth=[0,4]"], r"^supernet\.depth"),
        ("digits", ["teacher.exit_weights=[0.5,0.5]"], r"^exit weights .*one number per exit, 5 here, and hold 2"),
        ("digits", ["teacher.exit_weights=[0.5,0.5,0.5,0.5,0.5]"], r"^exit weights .*must sum to 1"),
        ("digits", ["data.resolutions=[8,20]"], r"^resolution \(8\) is smaller than the network's total stride 16"),
        ("digits", ["supernet.stem_stride=2"], r"^resolution \(16\) .*stride 32: use at least 32 or stem_stride 1"),
        ("digits", ["phases.kernel.teacher=oracle"], r"^teacher policy \('oracle'\) is unknown"),
        ("digits", ["data.root=/nowhere"], r"^data\.root \(/nowhere\): digits comes with a package"),
        ("cifar10", [], r"^data\.root"),
        ("tiny_imagenet_paper", ["data.root=/nowhere/at/all"], r"/nowhere/at/all.*data\.root"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_recipe_that_cannot_work_gets_one_line_and_leaves_nothing(
    verb: str,
    source: str,
    overrides: list[str],
    message: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refusal(capsys, verb, source, *overrides))
    assert list(tmp_path.iterdir()) == []


# Sub-networks that cannot be used


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda fields: {key: value for key, value in fields.items() if key != name}


def deeper(fields: dict[str, Any]) -> dict[str, Any]:
    """The network with one more block in each stage."""
    blocks = {name: [[*stage, stage[-1]] for stage in fields[name]] for name in ("kernel", "expand", "level")}
    return fields | {"depth": [depth + 1 for depth in fields["depth"]]} | blocks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"kernel": [[7] * 2] * 5}, r"^kernel\[0\]\[0\] \(7\) is not in the space.* 3, 5"),
        (deeper, r"^depth\[0\] \(3\) is not in the space: choose one of 1, 2"),
        (lambda fields: fields | {"resolution": 64}, r"^resolution \(64\) is not in the space: choose one of 16"),
        (lambda fields: fields | {"resolution": "16"}, r"^resolution \('16'\) must be a whole number"),
        (lambda fields: fields | {"height": 7}, r"^depth has 5 entries: height 7 needs one each"),
        (lambda fields: fields | {"height": 0}, r"^height \(0\) must be at least 1"),
        (lambda fields: fields | {"level": [[["pool"]] * 2] * 5}, r"^level\[0\]\[0\] \('pool'\) is no branch"),
        (lambda fields: fields | {"width": 3}, r"^'width' is no field of the sub-network"),
        (without("expand"), r"^expand is missing from the sub-network"),
        (lambda fields: {"subnet": [1]}, r"^sub-network \(\[1\]\) must be a mapping"),
        (lambda fields: [fields], r"^sub-network .* must be a mapping"),
        (lambda fields: 3, r"^sub-network \(3\) must be a mapping"),
        (lambda fields: None, r"^sub-network \(None\) must be a mapping"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "extract"])
def test_a_sub_network_outside_its_space_is_refused_by_name_and_value(
    verb: str, change: Callable[[Any], Any], message: str, tiny_run: Run, tmp_path: Path, capsys: Capture
) -> None:
    fields = ofav2.load_supernet(tiny_run.folder).space.largest().to_dict()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(change(fields)))
    arguments = ["--out", str(tmp_path / "out")] if verb == "extract" else []
    printed = refusal(capsys, verb, str(tiny_run.folder), "--subnet", str(file), *arguments)
    assert re.search(message, printed)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b'{"resolution": 16,}', b"nonsense", b"[" * 100_000],
    ids=["empty", "cut", "binary", "comma", "words", "deep"],
)
@pytest.mark.parametrize("verb", ["evaluate", "extract"])
def test_a_file_that_is_no_json_is_named(
    verb: str, content: bytes, tiny_run: Run, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    arguments = ["--out", str(tmp_path / "out")] if verb == "extract" else []
    printed = refusal(capsys, verb, str(tiny_run.folder), "--subnet", str(file), *arguments)
    assert printed.startswith(f"sub-network file ({file}) is no JSON")


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    printed = refusal(capsys, "evaluate", str(tiny_run.folder), "--subnet", str(tmp_path / name))
    assert printed.startswith(f"sub-network file ({tmp_path / name}) can't be read")


# Run folders that cannot be used


def edit_recipe(run: Path) -> None:
    file = run / "recipe.yaml"
    file.write_text(file.read_text().replace("weight_decay: 0.01", "weight_decay: 0.5"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), r"^run folder \(.*copy\) does not exist"),
        (lambda path: (path / "run.json").unlink(), r"^run folder \(.*copy\) has no run\.json, so it holds no run"),
        (lambda path: (path / "run.json").write_text('{"format": "other"}'), r"run\.json: format \('other'\)"),
        (lambda path: (path / "run.json").write_text('{"format": "ofav2-r'), r"run\.json is no JSON"),
        (lambda path: (path / "checkpoints" / "expand.safetensors").unlink(), r"expand\.safetensors is missing"),
        (lambda path: (path / "checkpoints" / "expand.json").write_text("{}"), r"expand\.json: format \(None\)"),
        (edit_recipe, r"recipe\.yaml: optim\.weight_decay is 0\.5, and was 0\.01 when the run was trained"),
        (lambda path: (path / "recipe.yaml").write_text("a: [1"), r"recipe\.yaml.*is not valid YAML"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "extract"])
def test_a_missing_or_foreign_run_gets_one_line(
    verb: str, damage: Callable[[Path], object], message: str, run_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    damage(run_copy)
    arguments = ["--largest", "--out", str(tmp_path / "out")] if verb == "extract" else []
    assert re.search(message, refusal(capsys, verb, str(run_copy), *arguments))
    assert not (tmp_path / "out").exists()


def test_a_phase_that_is_not_there_is_refused_by_name(tiny_run: Run, capsys: Capture) -> None:
    printed = refusal(capsys, "evaluate", str(tiny_run.folder), "--phase", "width")
    assert re.search(r"^phase \(width\) .*choose one of full, kernel, level, height, depth, expand", printed)


def test_a_run_folder_that_is_not_empty_is_left_alone(two: str, run_copy: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    printed = refusal(capsys, "train", two, "--run-dir", str(run_copy))
    assert printed.startswith(f"run folder ({run_copy}) holds a run")
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_a_run_folder_in_use_is_left_alone(two: str, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with folder.lock(run):
        printed = refusal(capsys, "train", two, "--run-dir", str(run))
    assert printed.startswith(f"run folder ({run}) ")
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_file_is_no_run_folder_and_stays(two: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").write_text("mine")
    assert str(tmp_path / "run") in refusal(capsys, "train", two, "--run-dir", str(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipes", "run"]


def test_extract_wants_to_know_which_network(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    printed = refusal(capsys, "extract", str(tiny_run.folder), "--out", str(tmp_path / "out"))
    assert all(choice in printed for choice in ("--largest", "--smallest", "--subnet"))
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_not_empty_is_left_alone(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    printed = refusal(capsys, "extract", str(tiny_run.folder), "--largest", "--out", str(tmp_path))
    assert printed.startswith(f"output folder ({tmp_path}) is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian", "digits"],
        ["plan"],
        ["extract", "run", "--largest"],
        ["extract", "run", "--largest", "--smallest", "--out", "out"],
        ["evaluate"],
        ["evaluate", "run", "--split", "train"],
        ["train", "digits", "--rundir"],
    ],
)
def test_arguments_that_make_no_command_are_refused_with_the_usage(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: ofav2")
    assert "error: " in printed.splitlines()[-1]


# How a process ends


def test_an_interruption_is_said_without_a_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "names", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "ofav2: interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(recipe, "names", fail)
    with pytest.raises(ValueError, match="a bug of ours"):
        main(["recipes"])


def test_a_real_process_lists_and_refuses(tmp_path: Path) -> None:
    done = process("recipes", cwd=tmp_path)
    assert done.returncode == 0
    assert "digits" in done.stdout
    assert done.stderr.startswith("next: ")
    done = process("train", "digits", "data.batchsize=3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert re.match(r"ofav2: data\.batchsize \(3\): no such key here .*did you mean data\.batch_size\?", done.stderr)
    assert list(tmp_path.iterdir()) == []


class Lost(io.StringIO):
    """A stream that can't be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("stderr", [Lost(BrokenPipeError()), Lost(OSError(28, "No space left on device")), None])
def test_a_training_goes_on_without_a_reader_of_its_notes(
    stderr: Lost | None, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["train", two, "--run-dir", str(tmp_path / "run")]) == 0
    assert read_run(tmp_path / "run").status == "finished"
    assert capsys.readouterr().out == f"{tmp_path / 'run'}\n"
    assert main(["train", two, "--run-dir", str(tmp_path / "run")]) == 2


def test_an_extraction_is_written_even_if_the_reader_of_its_table_has_left(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Lost(BrokenPipeError()))
    limits = ["--max-macs", "1G", "--candidates", "1", "--formats", "none"]
    assert main(["extract", str(tiny_run.folder), *limits, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "subnet.json").exists()


@pytest.mark.parametrize("stdout", [Lost(OSError(28, "No space left on device")), None])
def test_a_result_that_can_not_be_written_is_no_success(
    stdout: Lost | None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["recipes"]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"ofav2: stdout can't be written \((No space left on device|it is closed)\)", line)


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 74, r"ofav2: stdout can't be written \((it is closed|Bad file descriptor)\): .*"),
        (">/dev/full", 74, r"ofav2: stdout can't be written \(No space left on device\): .*"),
        (">/dev/null 2>&-", 0, ""),
        (">/dev/null 2>/dev/full", 0, ""),
        ("nowhere 2>&-", 2, ""),
    ],
)
def test_a_real_process_without_streams(redirection: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m ofav2 recipes {redirection}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    assert done.returncode == code
    assert re.fullmatch(said, done.stderr.rstrip("\n"))


def test_a_closed_stderr_is_no_name_for_the_next_file() -> None:
    """A library that writes to stderr would write into a run's `metrics.jsonl`."""
    code = (
        "import os; from ofav2.cli import console; console.occupy_standard_files(); file = open(os.devnull);"
        " os._exit(0 if file.fileno() > 2 else 1)"
    )
    command = f"{sys.executable} -c '{code}' <&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, timeout=120, check=False).returncode == 0


def test_an_empty_resume_begins_no_run(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "digits", "--resume", "", "--run-dir", str(tmp_path / "run")]) == 2
    assert "--resume (empty): must name a run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_killed_process_that_reads_images_gets_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: str) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(recipe, "names", lambda: fail("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert main(["recipes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is gone (DataLoader worker (pid 7) is killed by signal: Killed.)" in line
    assert "lower data.workers" in line
    monkeypatch.setattr(recipe, "names", lambda: fail("a bug of ours"))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["recipes"])


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_memory_that_runs_out_gets_one_line(
    error: type[Exception], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> object:
        if error is RuntimeError:
            return torch.empty(2**55)
        raise error("CUDA out of memory. Tried to allocate 9 GiB. If reserved memory is large, try something else.")

    monkeypatch.setattr(recipe, "names", fill)
    assert main(["recipes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"ofav2: memory ran out \(.*allocate.*\): lower data\.batch_size, evaluation\.batch_size or data\.resolutions",
        line,
    )
    assert "If reserved" not in line


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "x"), ("WORLD_SIZE", "0"), ("RANK", "2"), ("RANK", "x")])
def test_an_environment_that_is_no_torchruns_gets_one_line(
    name: str, value: str, two: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    assert f"{name} ({value})" in refusal(capsys, "train", two, "--run-dir", str(tmp_path / "run"))


def test_latencies_are_not_measured_for_a_file_that_can_not_be_written(
    tiny_run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ofav2.nas.latency_table, "build_table", None)
    said = refusal(capsys, "latency", str(tiny_run.folder), "--table", "/proc/table.json")
    assert said.startswith("/proc/table.json cannot be written")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_gets_no_traceback(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ofav2", "recipes"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 0
