"""A run keeps the number of threads that it chose; what comes after the run chooses again."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ofav2
from ofav2.config import recipe
from ofav2.evaluation import opened_run
from ofav2.evaluation.opened_run import open_run
from ofav2.finetuning.setup import prepare as prepare_tuning
from ofav2.runs import folder
from ofav2.runs.records import Run, read_run
from ofav2.training import setup as preparing
from ofav2.training import threads
from tests.notes import Notes
from tests.ofav2 import tiny

NAMED = "run: {threads: 1, "


class Chosen:
    """A choice that is made by nobody's clock; each call is run once."""

    def __init__(self, number: int) -> None:
        self.number, self.of = number, list[str]()

    def __call__(self, call, what, device, processes=None) -> int:  # type: ignore[no-untyped-def]
        before = torch.get_rng_state()
        call()
        assert torch.equal(torch.get_rng_state(), before), "torch's random numbers are the run's"
        self.of.append(what)
        return self.number


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Chosen:
    choice = Chosen(2)
    monkeypatch.setattr(threads, "choose_threads", choice)
    monkeypatch.setattr(opened_run, "choose_threads", choice)
    return choice


@pytest.fixture
def before() -> object:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def trained(tmp_path: Path) -> Run:
    text = tiny.TWO.replace(NAMED, "run: {threads: 0, ")
    return ofav2.train(tiny.written(tmp_path / "recipes", text), [], tmp_path / "run")


@pytest.mark.usefixtures("before")
def test_a_run_keeps_what_it_chose_and_goes_on_with_it(tmp_path: Path, chosen: Chosen, notes: Notes) -> None:
    run = trained(tmp_path)
    kept = recipe.load(str(run.folder / folder.RECIPE))
    assert (kept.run.threads, run.record.chosen_threads, chosen.of) == (2, 2, ["a training step"])

    # The recipe that it was started from still says 0, which means what was chosen.
    for name in (None, str(tmp_path / "recipes" / "tiny.yaml")):
        assert ofav2.resume(run.folder, name).record == run.record
    assert len(chosen.of) == 1
    notes()
    with pytest.raises(ofav2.RunError, match=r"run\.threads was 2, is 1"):
        ofav2.resume(run.folder, None, ["run.threads=1"])
    ofav2.resume(run.folder, None, ["run.threads=1"], ["run.threads"])
    assert "threads: 1, before: 2" in notes()


@pytest.mark.usefixtures("before")
def test_what_follows_a_run_chooses_again(tmp_path: Path, chosen: Chosen) -> None:
    run = trained(tmp_path)
    chosen.of.clear()
    opened = open_run(run.folder)
    assert len(chosen.of) == 1
    assert chosen.of[0].startswith("a forward pass of ")
    assert recipe.parse(opened.recipe, "it").run.threads == 0


def test_a_number_that_the_recipe_names_is_taken(tmp_path: Path, chosen: Chosen) -> None:
    run = ofav2.train(tiny.written(tmp_path / "recipes", tiny.TWO), [], tmp_path / "run")
    assert read_run(run.folder).chosen_threads is None
    assert recipe.parse(open_run(run.folder).recipe, "it").run.threads == 1
    assert chosen.of == []


def test_choosing_leaves_the_supernet_alone(tmp_path: Path, chosen: Chosen) -> None:
    text = tiny.TWO.replace(NAMED, "run: {threads: 0, ")
    setup = preparing.prepare(recipe.load(tiny.written(tmp_path, text)))
    state = {name: tensor.clone() for name, tensor in setup.net.state_dict().items()}
    settled = threads.settle_threads(setup)
    assert settled.net is setup.net
    assert settled.config.run.threads == 2
    assert all(np.array_equal(tensor, state[name]) for name, tensor in setup.net.state_dict().items())
    assert all(parameter.grad is None for parameter in setup.net.parameters())


def test_a_fine_tuning_keeps_what_it_chose(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Chosen(3)
    monkeypatch.setattr("ofav2.finetuning.setup.choose_threads", choice)
    assert prepare_tuning(extracted, ["run.threads=0"]).config.run.threads == 3
    assert choice.of == ["a training step"]
    assert prepare_tuning(extracted).config.run.threads == 1
