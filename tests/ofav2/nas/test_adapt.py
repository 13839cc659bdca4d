"""Adaptation: a phase for the front, kept only if the confirmed front covers more, resumable to the same bytes."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ofav2
from distill import DistillError
from ofav2.cli.main import STOPPED, main
from ofav2.config import recipe
from ofav2.config.schema import TeacherConfig
from ofav2.data.halves import halve
from ofav2.errors import RunError, UserError
from ofav2.nas import adapt as module
from ofav2.nas.adapt import adapted_recipe, ask_adaptation, confirmed_volumes
from ofav2.nas.found import ADAPTATION, ADAPTED, AdaptSettings
from ofav2.nas.limits import Limits
from ofav2.runs.records import read_run, write_run
from ofav2.runtime.signals import Lost, Stopped
from ofav2.training.phases import make_plan
from supernets import Subnet
from tests.ofav2.conftest import SHORT, volumes
from tests.ofav2.crew import Ended, run_apart
from tests.ofav2.test_torchrun import at_step, signal_oneself
from tests.ofav2.tiny import ALL_CORNERS, NO_CORNERS, SIX, written


def stopped(run: Path) -> Any:
    """A training that is told to stop."""
    raise Stopped("step 3 of phase adapt", str(run))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_searched_run_and_the_search_stay_as_they_are(searched: Path, adapted: Path) -> None:
    before, after = contents(searched), contents(adapted)
    assert all(after[name] == content for name, content in before.items())
    new = {name for name in after if name not in before}
    assert all(name.startswith((f"search/{ADAPTED}/", f"search/{ADAPTATION}")) for name in new)


def test_the_phase_is_the_searched_one_drawn_from_the_front(adapted: Path) -> None:
    found, copy = ofav2.load_search(adapted / "search"), read_run(adapted / "search" / ADAPTED)
    *_, last, phase = recipe.parse(copy.recipe, "copy").phases.values()
    front = tuple(one.subnet for one in found.front.finalists)
    assert tuple(map(Subnet.from_json, phase.networks)) == front
    assert phase == replace(
        last, epochs=0.05, lr=last.lr / 3, warmup_epochs=0.0, unlock=phase.unlock, sampler="marginals",
        networks=phase.networks,
    )  # fmt: skip
    assert (copy.status, copy.phases[-1].name) == ("finished", "adapt")
    assert copy.phases[:-1] == read_run(adapted).phases
    assert copy.phases[-1].sha256 == found.sources[0].weights != found.record.runs[0].weights


def require_measured_anew(run: Path) -> None:
    """The front in a run's search has the values that its networks have with the adapted weights."""
    found = ofav2.load_search(run / "search")
    opened = ofav2.open_run(*found.sources[0][:2])
    subnets = [one.subnet for one in found.front.finalists]
    assert [one.subnet for one in found.final.finalists] == subnets
    for split, name in zip(halve(opened.data.val, opened.evaluator.seed), ("searched", "confirmed"), strict=True):
        expected = {score.subnet: score.value for score in opened.evaluator.scores(opened.loaded.net, subnets, split)}
        assert {one.subnet: getattr(one, name) for one in found.final.finalists} == expected


def test_the_front_is_measured_anew_on_both_halves(adapted: Path) -> None:
    require_measured_anew(adapted)
    found = ofav2.load_search(adapted / "search")
    assert found.adapted is not None
    gains = [
        new.confirmed - old.confirmed for old, new in zip(found.front.finalists, found.final.finalists, strict=True)
    ]
    assert found.adapted.gain == pytest.approx(np.mean(gains))


def test_a_search_that_is_killed_again_and_again_ends_with_the_same_bytes(
    adapted: Path, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    search = run / "search"
    (search / "front.json").unlink()

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    places = ("rounds.front_of", "adapt._copy_files", "adapt.resume", "adapt._measured_anew", "adapt.write_record")
    monkeypatch.setattr(module, "hypervolume", volumes(0.1))
    for number, name in enumerate(places):
        with monkeypatch.context() as patch:
            patch.setattr(f"ofav2.nas.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                ofav2.resume_search(search, adapt=SHORT if not number else None)
        with pytest.raises(UserError, match="has not finished"):
            ofav2.load_search(search)
    monkeypatch.setattr(module, "hypervolume", volumes(0.1))
    ofav2.resume_search(search)
    expected, found = contents(adapted / "search"), contents(search)
    assert found.keys() == expected.keys()
    for name in ("archive.jsonl", "front.json", ADAPTATION, f"{ADAPTED}/checkpoints/adapt.safetensors"):
        assert found[name] == expected[name], name


def in_two(run: Path) -> list[Ended]:
    """How two processes end that adapt together."""
    return run_apart(2, lambda: ofav2.resume_search(run / "search", adapt=SHORT).adapted)


@pytest.mark.slow
def test_two_processes_adapt_as_one_and_go_on_to_the_same_bytes_wherever_one_is_killed(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hypervolume", volumes(0.1))
    run = Path(shutil.copytree(searched, tmp_path / "straight"))
    first, second = in_two(run)
    assert first.error is second.error is None
    assert first.found == second.found
    expected, record = contents(run / "search"), read_run(run / "search" / ADAPTED)
    assert record.processes == 2
    require_measured_anew(run)

    run = Path(shutil.copytree(searched, tmp_path / "killed"))
    last = record.phases[-1]
    kill = signal_oneself(signal.SIGKILL)
    measure = module._measured_anew
    for killed, place in ((1, "training"), (0, "training"), (1, "measuring")):

        def measured(found: Any, processes: Any, rank: int = killed) -> Any:
            return kill() if processes.rank == rank else measure(found, processes)

        with monkeypatch.context() as patch:
            if place == "training":
                at_step(record.phases[-2].end + 2 + killed, killed, kill, patch)
            else:
                patch.setattr(module, "_measured_anew", measured)
            ended = in_two(run)
        assert ended[killed].code == -signal.SIGKILL, place
        assert isinstance(ended[1 - killed].error, Lost), place
    assert [one.error for one in in_two(run)] == [None, None]
    found = contents(run / "search")
    assert found.keys() == expected.keys()
    for name in (ADAPTATION, f"{ADAPTED}/checkpoints/{last.name}.safetensors"):
        assert found[name] == expected[name], name


def test_one_that_did_not_help_is_not_kept_and_said(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    search = run / "search"
    monkeypatch.setattr(module, "hypervolume", volumes(-0.1))
    asked = ["search", "--resume", str(search), "--adapt", "--adapt-epochs", "0.05", "--adapt-lr", "0.0001"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "resume", stopped)
        assert main(asked) == STOPPED
    assert f"`ofav2 search --resume {search}` goes on from there" in " ".join(capsys.readouterr().err.split())
    assert main(asked) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "confirmed front 0.5000 before, 0.4000 after" in said
    assert "it did not help, and is not kept" in said
    assert not (search / ADAPTED).exists()
    found = ofav2.load_search(search)
    assert found.adapted is not None
    assert not found.adapted.kept
    assert found.sources[0][::2] == (run, found.record.runs[0].weights)
    assert found.final == found.front
    # Once more shows the same, and trains nothing.
    monkeypatch.setattr(module, "resume", None)
    assert main(asked) == 0
    with pytest.raises(UserError, match="asked for with other settings"):
        ofav2.resume_search(search, adapt=SHORT)


def test_a_copy_with_other_settings_or_networks_is_not_taken(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(adapted, tmp_path / "run"))
    search = run / "search"
    (search / ADAPTATION).unlink()
    with pytest.raises(RunError, match=r"phases.adapt.lr is 0.01, and was .*: remove that folder to adapt anew"):
        ofav2.resume_search(search, adapt=replace(SHORT, lr=0.01))
    (search / ADAPTATION).unlink()
    monkeypatch.setattr(module, "resume", stopped)
    with pytest.raises(Stopped):
        ofav2.resume_search(search, adapt=SHORT)
    shutil.rmtree(search / ADAPTED)
    (search / ADAPTATION).unlink()
    with pytest.raises(Stopped):
        ofav2.resume_search(search, adapt=replace(SHORT, lr=0.01))


def test_extract_takes_the_adapted_weights(adapted: Path, tmp_path: Path) -> None:
    search = adapted / "search"
    first = ofav2.load_search(search).final.finalists[0]
    given = ["--from-search", str(search), "--number", "1", "--formats", "none", "--out"]
    for number, run in enumerate(([], [str(adapted)], [str(search / ADAPTED)])):
        out = tmp_path / f"net-{number}"
        assert main(["extract", *run, *given, str(out)]) == 0
        written = ofav2.describe_subnet(out)
        assert (written.provenance.phase, written.subnet) == ("adapt", first.subnet)


@pytest.mark.parametrize(("settings", "key"), [(AdaptSettings(epochs=-1.0), "epochs"), (AdaptSettings(lr=0.0), "lr")])
def test_settings_out_of_range_are_refused_before_anything_is_searched(
    settings: AdaptSettings, key: str, searched: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"phases.adapt.{key} \("):
        ofav2.search(searched, measurements=8, adapt=settings, out=out)
    assert not out.exists()
    with pytest.raises(UserError, match=rf"phases.adapt.{key} \("):
        ofav2.resume_search(searched / "search", adapt=settings)
    assert not (searched / "search" / ADAPTATION).exists()


def test_weights_of_the_largest_network_alone_are_not_adapted(searched: Path, tmp_path: Path) -> None:
    run, out = Path(shutil.copytree(searched, tmp_path / "run")), tmp_path / "out"
    record = read_run(run)
    write_run(run, replace(record, phases=record.phases[:1], status="stopped", test=None, states={}))
    with pytest.raises(UserError, match=r"--adapt: phase full of .* trained the largest network alone"):
        ofav2.search(run, measurements=8, adapt=AdaptSettings(), out=out)
    assert not out.exists()


def test_a_first_phase_that_was_skipped_does_not_count_as_elastic(tmp_path: Path) -> None:
    text = SIX[: SIX.index("phases:")].replace(ALL_CORNERS, NO_CORNERS).replace("ee_dp", "ee_d")
    text += "phases: {level: {epochs: 1, lr: 0.003, unlock: {level: [1, 2]}}, full: {epochs: 0.02, lr: 0.003}}\n"
    run, out = tmp_path / "run", tmp_path / "out"
    ofav2.train(written(tmp_path, text), run_dir=run)
    with pytest.raises(UserError, match=r"--adapt: phase full of .* trained the largest network alone"):
        ofav2.search(run, measurements=8, adapt=AdaptSettings(), out=out)
    assert not out.exists()


def test_a_teacher_that_is_gone_is_refused_before_anything_is_measured(searched: Path, tmp_path: Path) -> None:
    run, out = Path(shutil.copytree(searched, tmp_path / "run")), tmp_path / "out"
    record = read_run(run)
    config = recipe.parse(record.recipe, "run")
    gone = TeacherConfig(checkpoint=str(tmp_path / "gone.safetensors"), mean=(0.5,) * 3, std=(0.2,) * 3)
    phases = dict(config.phases) | {"expand": replace(config.phases["expand"], teacher="timm:test_resnet")}
    text = recipe.dump(replace(config, teacher=gone, phases=phases))
    write_run(run, replace(record, recipe=text))
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DistillError, match=r"gone\.safetensors"):
        ofav2.search(run, measurements=8, adapt=AdaptSettings(), out=out)
    with pytest.raises(DistillError, match=r"gone\.safetensors"):
        ofav2.resume_search(run / "search", adapt=AdaptSettings())
    assert not out.exists()
    assert not (run / "search" / ADAPTATION).exists()


def test_a_batch_that_processes_cannot_share_is_refused_before_anything_is_measured(
    searched: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    search = run / "search"
    ask_adaptation(search, SHORT)
    (search / "front.json").unlink()
    before = contents(search)
    ended = run_apart(3, lambda: ofav2.resume_search(search))
    assert isinstance(ended[0].error, UserError)
    assert "can't be shared out evenly to 3 processes" in str(ended[0].error)
    assert contents(search) == before


def test_after_joint_training_each_network_is_trained_from_labels_alone(searched: Path) -> None:
    record = read_run(searched)
    config = recipe.parse(record.recipe, "run")
    phases = {
        "full": config.phases["full"],
        "depth": replace(config.phases["depth"], objective="joint", teacher=None),
    }
    ends = [record.space.uniform(height=1), record.space.largest()]
    made = adapted_recipe(replace(config, phases=phases), record.space, "depth", SHORT, ends)
    phase = make_plan(made.phases, made.teacher, record.space, 10).phases[-1]
    assert (phase.objective, phase.teacher) == ("distill", "none")
    # `joint` trains all exits though none is unlocked.
    assert phase.space.height == record.space.height


def test_settings_without_the_option_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "run", "--adapt-lr", "0.1"]) == 2
    assert "give it as well" in capsys.readouterr().err


def test_only_phases_up_to_the_searched_one_are_repeated(searched: Path) -> None:
    config = recipe.parse(read_run(searched).recipe, "run")
    config = replace(config, evaluation=replace(config.evaluation, every_epochs=1.0))
    network = ofav2.load_search(searched / "search").front.finalists[0].subnet
    names = list(config.phases)
    space = read_run(searched).space
    made = adapted_recipe(config, space, names[-2], AdaptSettings(), [network])
    assert list(made.phases) == [*names[:-1], "adapt"]
    assert made.evaluation.every_epochs == 0, "no epoch is chosen by images that confirm the gain"
    again = adapted_recipe(made, space, "adapt", AdaptSettings(), [network])
    assert list(again.phases) == [*names[:-1], "adapt", "adapt1"]


def test_volumes_are_shares_of_the_box_around_both_fronts(searched: Path) -> None:
    found = ofav2.load_search(searched / "search")
    before = found.front.finalists
    better = [replace(one, confirmed=one.confirmed + 0.1) for one in before]
    same, worse = confirmed_volumes(found.record, before, before), confirmed_volumes(found.record, better, before)
    assert same[0] == same[1]
    assert worse[1] < worse[0] < 1
    # One network, by hand: it is the box's best corner if it got better, and a margin from the worst one if not.
    after, rest = confirmed_volumes(found.record, better[:1], before[:1])
    assert (after, rest) == (1.0, pytest.approx(1 - 1 / 1.01))


def test_other_weights_are_refused(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    found = ofav2.load_search(run / "search")
    text = (run / "search" / "search.json").read_text(encoding="utf-8")
    (run / "search" / "search.json").write_text(text.replace(found.record.runs[0].weights, "0" * 64), encoding="utf-8")
    with pytest.raises(RunError, match="is of other weights"):
        ofav2.resume_search(run / "search", adapt=SHORT)
    with pytest.raises(UserError, match="kept by no network"):
        found.best(Limits(macs=1))
