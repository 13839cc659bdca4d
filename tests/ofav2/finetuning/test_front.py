"""The front of a search fine-tuned in one go: equal to one by one, and resumable to the same bytes."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ofav2
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData
from ofav2.deploy.artifact import RECORD
from ofav2.deploy.source import kept_settings
from ofav2.errors import UserError
from ofav2.finetuning import front as module
from ofav2.finetuning import setup
from ofav2.finetuning.front import check_forms, finetune_front
from ofav2.nas.found import FRONT
from supernets import Subnet
from tests.ofav2.finetuning.conftest import images
from tests.ofav2.tiny import cut
from tests.shared import made_once
from tests.test_architecture import ROOT

QUICK = ("finetune.epochs=1", "finetune.patience=0")


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def few_images(opened: ofav2.OpenedRun) -> Iterator[None]:
    """Fine-tune on a few images that pass for the run's own."""

    def few(config: DataConfig) -> ImageData:
        data = images(fingerprint=opened.data.fingerprint)
        return replace(data, mean=config.mean or data.mean, std=config.std or data.std)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "open_data", few)
        yield


@pytest.fixture(scope="module")
def short_search(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search with a front of two networks, one that ends at the first exit and one that ends later."""

    def make(path: Path) -> None:
        shutil.copytree(searched, path)

        def shorten(front: dict[str, Any]) -> None:
            deep = next(one for one in front["finalists"] if one["subnet"]["height"] > 1)
            short = cut(Subnet.from_dict(deep["subnet"]), 1).to_dict()
            front["finalists"] = [deep | {"subnet": short}, deep]

        change_json(path / "search" / FRONT, shorten)

    return made_once(tmp_path_factory, "short", make) / "search"


@pytest.fixture(scope="module")
def tuned(short_search: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The front fine-tuned in both forms; to look at only."""
    return made_once(
        tmp_path_factory,
        "tuned",
        lambda path: finetune_front(short_search, QUICK, out=path, forms=("single", "joint")),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()
    }


def test_each_network_is_as_if_fine_tuned_alone(short_search: Path, tuned: Path, tmp_path: Path) -> None:
    found = ofav2.load_search(short_search)
    opened = ofav2.open_run(found.sources[0].run)
    for number, form, exits in ((1, "single", "last"), (2, "joint", "all")):
        subnet = found.front.finalists[number - 1].subnet
        ofav2.extract(opened, subnet, tmp_path / form, exits, formats=())
        alone = ofav2.finetune(tmp_path / form, QUICK, out=tmp_path / f"{form}-tuned", formats=())
        together = ofav2.describe_subnet(tuned / f"{number}-{form}" / "tuned")
        assert together.sha256 == alone.sha256
        assert together.finetuning[-1].test == alone.finetuning[-1].test


def test_a_fine_tuned_networks_threads_are_chosen_anew(tuned: Path) -> None:
    """The number that was fastest where it was trained says nothing of where it is opened."""
    where = tuned / "1-single" / "tuned"
    record = ofav2.describe_subnet(where)
    trained = recipe.parse_tuning(record.finetuning[-1].recipe, "recipe")
    assert trained.run.threads == 1
    assert kept_settings(record, where / RECORD) == replace(trained, run=replace(trained.run, threads=0))


def test_the_joint_form_keeps_and_trains_all_exits(short_search: Path, tuned: Path) -> None:
    subnet = ofav2.load_search(short_search).front.finalists[1].subnet
    record = ofav2.describe_subnet(tuned / "2-joint" / "tuned")
    assert sorted(record.finetuning[-1].test) == list(range(1, subnet.height + 1))
    assert list(ofav2.describe_subnet(tuned / "2-single" / "tuned").finetuning[-1].test) == [subnet.height]


def test_a_call_that_stopped_goes_on_to_the_same_files(
    short_search: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", []

    def broken(*given: Any, **more: Any) -> Any:
        calls.append(more["out"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ofav2.finetune(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "finetune", broken)
        with pytest.raises(KeyboardInterrupt):
            finetune_front(short_search, QUICK, out=out, forms=("single", "joint"))
    assert not (out / "front.json").exists()
    kept = (out / "1-single" / "tuned" / "subnet.json").stat().st_mtime_ns
    finetune_front(short_search, QUICK, out=out, forms=("single", "joint"))
    assert (out / "1-single" / "tuned" / "subnet.json").stat().st_mtime_ns == kept
    assert contents(out) == contents(tuned)
    with pytest.raises(UserError, match="holds a fine-tuning of another front, or with other settings"):
        finetune_front(short_search, ("finetune.epochs=2",), out=out)


def test_what_cannot_be_done_is_refused_first(
    short_search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        finetune_front(short_search, out=tmp_path / "full")
    wrong: tuple[Any, ...] = (["all"], ["joint", "joint"], [], "joint", "")
    for forms in wrong:
        with pytest.raises(UserError, match=r"^forms \(.*\) must be (a list|single, joint or single,joint)"):
            finetune_front(short_search, out=tmp_path / "new", forms=forms)
    assert check_forms(["joint", "single"]) == ("single", "joint")
    other = Path(shutil.copytree(short_search.parent, tmp_path / "other")) / "search"
    change_json(other / "search.json", lambda record: record["runs"][0].update(weights="0" * 64))
    with pytest.raises(UserError, match="is of other weights than run"):
        finetune_front(other, out=tmp_path / "out")
    for arguments in (["--forms", "single"], []):
        assert main(["finetune", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_among_images(short_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    run = module.open_loaded

    def beside_images(*given: Any) -> Any:
        opened = run(*given)
        return replace(opened, data=replace(opened.data, trees=(images,)))

    monkeypatch.setattr(module, "open_loaded", beside_images)
    with pytest.raises(UserError, match="output folder"):
        finetune_front(short_search, QUICK, out=images / "tuned")
    assert not any(images.iterdir())


def test_the_commands_of_the_page_run(short_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ofav2 (finetune --from-search .*)$", page, re.MULTILINE)
    shutil.copytree(short_search.parent, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    assert len(commands) == 2
    for command in commands:
        assert main(command.replace("epochs=20", "epochs=1").split()) == 0


def test_settings_can_be_corrected_until_a_network_is_trained(short_search: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune.lr \(0"):
        finetune_front(short_search, ("finetune.lr=0",), out=tmp_path / "out")
    mine = tmp_path / "mine.yaml"
    mine.write_text("finetune: {epochs: 1, patience: 0}\n")
    again: dict[str, Any] = {"out": tmp_path / "out", "forms": ("joint",), "file": str(mine)}
    assert finetune_front(short_search, **again).networks[0].form == "single"
    mine.write_text("finetune: {epochs: 2, patience: 0}\n")
    with pytest.raises(UserError, match="or with other settings"):
        finetune_front(short_search, **again)


def test_the_command_shows_before_and_after(
    short_search: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tuned, tmp_path / "out"))
    arguments = ["--from-search", str(short_search), *QUICK, "--forms", "single,joint", "--out", str(out)]
    assert main(["finetune", *arguments]) == 0
    shown = capsys.readouterr()
    record = json.loads((tuned / "front.json").read_text(encoding="utf-8"))
    assert [one["form"] for one in record["networks"]] == ["single", "single", "joint"]
    for one in record["networks"]:
        assert f"{100 * one['before']:.2f} %" in shown.out
        assert f"{100 * one['after']:.2f} %" in shown.out
    assert f"next: in Python, ofav2.load_subnet('{out}/1-single/tuned')" in shown.err
