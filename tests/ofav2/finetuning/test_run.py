"""A fine-tuned network is what the method says, to the last bit, or nothing is left behind."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ofav2
from ofav2 import files
from ofav2.config import recipe
from ofav2.data import ImageData, Split, eval_batches, join, normalise, train_batches
from ofav2.data.images import ArrayImages, Indices, Pixels, pixels_of
from ofav2.data.splits import TargetSpec
from ofav2.deploy.seen import SEEN
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.finetuning import loop as learn
from ofav2.finetuning import run as finetune_run
from ofav2.finetuning import setup
from ofav2.finetuning.setup import set_dropout
from ofav2.rng import Stream
from ofav2.runtime.processes import Processes
from ofav2.tasks.classification import TOP1
from ofav2.training.step import DivergedError
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.finetuning.conftest import DIGITS, QUICK, images

pytestmark = pytest.mark.usefixtures("noise")
finetune = partial(ofav2.finetune, formats=())
"""Nothing but weights and description is written."""
Serve = Callable[[ImageData], None]


def files_below(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def tensors(directory: Path) -> dict[str, Tensor]:
    return tiny.bits(ofav2.load_subnet(directory))


# The method


def plain_reference(source: Path, data: ImageData, epochs: int, lr: float) -> tuple[int, list[float], nn.Module]:
    """Both trainings, written down: epochs found, validation top-1 from before on, the network."""
    config = recipe.parse_tuning(SETTINGS, "reference").data
    given = ofav2.describe_subnet(source).input
    mean, std = given.mean, given.std

    def prepared(pixels: Tensor) -> Tensor:
        return normalise(pixels, mean, std)

    def top1(module: nn.Module) -> float:
        module.eval()
        with torch.no_grad():
            batches = eval_batches(data.val, resolution=16, eval_crop=0.875, batch_size=200)
            return sum(int((module(prepared(x)).argmax(1) == y).sum()) for x, y in batches) / len(data.val)

    def trained(name: str, seen: ImageData, count: int) -> Iterator[nn.Module]:
        module = ofav2.load_subnet(source).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = [p for p in module.parameters() if p.ndim > 1]
        others = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        yield module
        per_epoch = len(seen.train) // 16
        batches = iter(train_batches(seen, config, Stream(0, name), range(count * per_epoch)))
        for step, (pixels, labels) in enumerate(batches, 1):
            module.train()
            progress = (step - 1) / (epochs * per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * progress))
            functional.cross_entropy(module(prepared(pixels)), labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % per_epoch == 0:
                yield module

    found = [top1(module) for module in trained("search", data, epochs)]
    best = max(epoch for epoch in range(1, epochs + 1) if found[epoch] == max(found[1:]))
    everything = replace(data, train=join(data.train, data.val, "train"))
    *_, last = trained("final", everything, best)
    return best, found, last.eval()


SETTINGS = """\
run: {}
data: {name: digits, resolutions: [16], batch_size: 16}
finetune: {lr: 0.01}
optim: {}
"""


def test_fine_tuning_is_the_plain_reference_to_the_last_bit(extracted: Path, tmp_path: Path) -> None:
    data = images()
    written = finetune(extracted, QUICK, out=tmp_path / "out")
    assert ofav2.describe_subnet(tmp_path / "out") == written
    best, found, module = plain_reference(extracted, data, epochs=3, lr=0.01)
    record = written.finetuning[-1]
    assert record.epochs == best
    assert [record.search.before.score, *(after.score for after in record.search.after)] == found
    assert [epoch.number for epoch in record.final] == list(range(1, best + 1))
    assert tiny.same_bits(tensors(tmp_path / "out"), tiny.bits(module))
    assert not tiny.same_bits(tensors(extracted), tiny.bits(module))


@dataclass(frozen=True, eq=False)
class Watched:
    """Images that note each time one is read."""

    name: str
    images: ArrayImages
    indices: Indices
    log: list[tuple[str, int]]

    def read(self, index: int) -> Tensor:
        self.log.append((self.name, int(self.indices[index])))
        return self.images.read(int(self.indices[index]))

    def look(self, indices: Indices) -> Pixels:
        return pixels_of([self.read(index) for index in indices.tolist()])

    def names(self) -> list[str] | None:
        return self.images.names()

    @property
    def decoded(self) -> bool:
        return self.images.decoded

    @property
    def size(self) -> tuple[int, int] | None:
        return self.images.size

    def take(self, indices: Indices) -> "Watched":
        return Watched(self.name, self.images, self.indices[indices], self.log)

    def identity(self) -> bytes:
        return self.images.identity()


def test_test_images_are_looked_at_once_after_all_training(several: Path, tmp_path: Path, serve: Serve) -> None:
    log: list[tuple[str, int]] = []

    def watched(split: Split) -> Split:
        assert isinstance(split.images, ArrayImages)
        return Split(split.name, split.targets.copy(), Watched(split.name, split.images, np.arange(len(split)), log))

    data = images()
    serve(replace(data, train=watched(data.train), val=watched(data.val), test=watched(data.test)))
    written = finetune(several, QUICK, out=tmp_path / "out")
    # Before, each image is read once, to know it again, and those of validation to see whether they are known.
    known = len(data.train) + 2 * len(data.val) + len(data.test)
    assert sorted(name for name, _ in log[:known]) == sorted(["train"] * 40 + ["val"] * 46 + ["test"] * 17)
    del log[:known]
    tested = [position for position, (name, _) in enumerate(log) if name == "test"]
    assert sorted(log[position] for position in tested) == [("test", index) for index in range(len(data.test))]
    assert tested == list(range(tested[0], tested[0] + len(tested))), "in one go"
    batches = len(data.train) // 16 * 3 + (len(data.train) + len(data.val)) // 16 * written.finetuning[-1].epochs
    decoded_once = len(data.val)
    assert tested[0] == batches * 16 + decoded_once, "all training is over by then"


def test_epochs_are_compared_on_validation_and_of_equals_the_last_wins(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.9, 0.5, 0.7, 0.6, 0.7, 0.6, 0.6, 0.6, 0.8]
    monkeypatch.setattr(
        learn, "_validation", lambda tuning, module, epochs: learn.Validation(epochs, {"3": 0.0}, scores[epochs])
    )
    tuning = finetune_run.prepare(extracted, [*QUICK, "finetune.epochs=8"])
    assert learn.find_epochs(tuning).best(TOP1).epochs == 8
    patient = replace(tuning.config, finetune=replace(tuning.config.finetune, patience=3))
    stopped = learn.find_epochs(replace(tuning, config=patient))
    assert (stopped.best(TOP1).epochs, len(stopped.epochs)) == (4, 7)


def test_the_second_training_has_the_learning_rates_of_the_first(extracted: Path, tmp_path: Path) -> None:
    settings = [*QUICK, "finetune.warmup_epochs=1", "data.batch_size=4"]
    tuning = finetune_run.prepare(extracted, settings)
    module = tuning.start.module
    first = [epoch.lr for epoch in learn.train(tuning, module, tuning.data, "search", 3)]
    whole = replace(tuning.data, train=join(tuning.data.train, tuning.data.val, "train"))
    second = [epoch.lr for epoch in learn.train(tuning, module, whole, "final", 2)]
    assert first[0] == second[0] == 0.01, "the warm-up ends at the peak"
    assert second[1] == pytest.approx(first[1], rel=0.2)
    assert first[1] > 3 * first[2], "and the cosine falls after it"


# Exits and classes


def test_exits_are_trained_by_their_weights(several: Path, tmp_path: Path) -> None:
    written = finetune(several, [*QUICK, "finetune.exit_weights=[0,1]"], out=tmp_path / "out")
    before, after = tensors(several), tensors(tmp_path / "out")
    own = [name for name in before if name.startswith("exits.2.") and "running" not in name and "num_" not in name]
    assert own
    assert all(torch.equal(before[name], after[name]) for name in own), "an exit of weight 0 is left alone"
    assert not torch.equal(before["exits.3.classifier.weight"], after["exits.3.classifier.weight"])
    assert list(written.scores["test"]) == [2, 3]
    after_last = written.finetuning[-1].search.after[-1]
    assert after_last.score == after_last.exits[3], "the ensemble is that of the same weights"


def test_the_same_classes_keep_their_classifiers(extracted: Path) -> None:
    tuning = finetune_run.prepare(extracted)
    assert not tuning.start.new_classifiers
    assert tiny.same_bits(tiny.bits(tuning.start.module), tensors(extracted))


@pytest.mark.parametrize("classes", [("a", "b", "c"), DIGITS[::-1]])
def test_other_classes_get_new_classifiers_and_nothing_else_changes(
    classes: tuple[str, ...], several: Path, tmp_path: Path, serve: Serve, notes: Notes
) -> None:
    serve(replace(tiny.tiny_data(classes=len(classes), side=16), target=TargetSpec("classes", classes)))
    start, before = tiny.bits(finetune_run.prepare(several).start.module), tensors(several)
    differing = {name for name in before if not torch.equal(before[name], start[name])}
    assert differing == {f"exits.{exit}.classifier.weight" for exit in (2, 3)} | (
        {f"exits.{exit}.classifier.bias" for exit in (2, 3)}
    )
    assert tiny.same_bits(start, tiny.bits(finetune_run.prepare(several).start.module)), "drawn from the seed alone"
    assert not tiny.same_bits(start, tiny.bits(finetune_run.prepare(several, ["run.seed=1"]).start.module))
    written = finetune(several, QUICK, out=tmp_path / "out")
    assert "classifiers are made anew" in notes()
    assert written.classes == tuple(classes)
    assert [logits.shape for logits in ofav2.load_subnet(tmp_path / "out")(torch.zeros(2, 3, 16, 16))] == [
        (2, len(classes))
    ] * 2
    assert written.finetuning[-1].test_before is None, "of other images nothing is known"


def test_images_are_normalised_as_the_network_was_trained_to_expect(extracted: Path, tmp_path: Path) -> None:
    given = ofav2.describe_subnet(extracted).input
    assert given.mean != tuple(tiny.MEAN)
    assert finetune(extracted, QUICK, out=tmp_path / "kept").input == given
    own = finetune(extracted, [*QUICK, "data.mean=null", "data.std=null"], out=tmp_path / "own").input
    assert (own.mean, own.std) == (tuple(tiny.MEAN), tuple(tiny.STD))


def test_what_is_seen_otherwise_is_not_compared_with_before(extracted: Path, tmp_path: Path, serve: Serve) -> None:
    """Another crop alone changes accuracy, which would be taken for fine-tuning's effect."""
    serve(images(fingerprint=ofav2.describe_subnet(extracted).measured_fingerprint))
    for name, settings, known in (("same", [], True), ("other", ["data.eval_crop=0.5"], False)):
        written = finetune(extracted, [*QUICK, *settings], out=tmp_path / name)
        assert (written.finetuning[-1].test_before is not None) == known


# What is written


def test_a_fine_tuned_network_can_be_fine_tuned_again(extracted: Path, tmp_path: Path, notes: Notes) -> None:
    before = ofav2.describe_subnet(extracted)
    first = finetune(extracted, [*QUICK, "optim.weight_decay=0.5"], out=tmp_path / "first")
    assert first.provenance == before.provenance
    assert (first.cost, first.name) == (before.cost, before.name)
    assert first.finetuning[0].source_sha256 == before.sha256
    assert "say little" not in notes().splitlines()[-1]
    second = finetune(tmp_path / "first", ["run.seed=1"], out=tmp_path / "second")
    assert "validation images were trained on by the last fine-tuning" in notes()
    assert [step.source_sha256 for step in second.finetuning] == [before.sha256, first.sha256]
    kept = recipe.parse_tuning(second.finetuning[-1].recipe, "here")
    assert (kept.finetune.epochs, kept.optim.weight_decay, kept.run.seed) == (3, 0.5, 1)
    assert second.finetuning[-1].test_before == first.scores["test"]


def test_a_list_of_trained_images_that_is_lost_or_changed_is_refused(extracted: Path, tmp_path: Path) -> None:
    network = Path(shutil.copytree(extracted, tmp_path / "network"))
    (network / SEEN).write_bytes(b"x" * 16)
    with pytest.raises(RunError, match=r"trained_images\.bin is not the one that subnet\.json names"):
        finetune_run.prepare(network)
    (network / SEEN).unlink()
    with pytest.raises(RunError, match=r"trained_images\.bin cannot be read"):
        finetune_run.prepare(network)


def test_the_same_fine_tuning_gives_the_same_bytes(extracted: Path, tmp_path: Path) -> None:
    settings = [*QUICK, "finetune.dropout=0.3"]
    for name in ("one", "two"):
        torch.rand(3)
        finetune(extracted, settings, out=tmp_path / name)
    names = files_below(tmp_path / "one")
    assert {"subnet.json", "model.safetensors", "recipe.yaml"} <= set(names)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    repeated = finetune(extracted, out=tmp_path / "three", file=tmp_path / "one" / "recipe.yaml")
    assert repeated.sha256 == ofav2.describe_subnet(tmp_path / "one").sha256


def test_dropout_is_of_attached_exits_and_not_of_what_timm_made() -> None:
    network = ofav2.attach_exits("mobilenetv3_small_050", classes=10, resolution=32, drop_rate=0.2)
    set_dropout(network, 0.5)
    heads = {id(layer) for layer in network.get_submodule("exits").modules()}
    found = {(id(layer) in heads, layer.p) for layer in network.modules() if isinstance(layer, nn.Dropout)}
    assert found == {(True, 0.5), (False, 0.2)}
    set_dropout(nn.Sequential(nn.Dropout(0.2)), 0)
    with pytest.raises(UserError, match=r"finetune.dropout \(0.5\): the network's only exit is timm's own head"):
        set_dropout(nn.Sequential(nn.Dropout(0.2)), 0.5)


# Refusals


def test_a_loss_that_is_not_finite_stops_fine_tuning_with_the_step(extracted: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite in step \d+ of phase search.*lower finetune\.lr") as refused:
        finetune(extracted, ["finetune.lr=1e30", "finetune.epochs=9", "data.batch_size=5"], out=tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert files_below(tmp_path) == []


def test_a_validation_that_is_not_finite_chooses_no_epoch(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, calls = Evaluator.exit_scores, iter(range(9))

    def broken_in_the_second_epoch(self: Evaluator, *given: Any) -> tuple[float, ...]:
        return (math.nan,) if next(calls) == 2 else measured(self, *given)

    monkeypatch.setattr(Evaluator, "exit_scores", broken_in_the_second_epoch)
    with pytest.raises(DivergedError, match=r"^exit \d has no finite top-1 on val \(nan\): lower finetune\.lr"):
        finetune(extracted, ["finetune.epochs=3"], out=tmp_path / "out")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phases.full.lr=1", r"^phases \(.*no such key here \(task, run, data, finetune, optim\)"),
        ("optim.lr=1", r"^optim\.lr \(1\): no such key here .*did you mean finetune\.lr\?"),
        ("lr=1", r"^lr \(1\): .*did you mean finetune\.lr\?"),
        ("finetune.epochs=0", r"^finetune\.epochs \(0\): must be from 1"),
        ("data.resolutions=[32]", r"^data\.resolutions \(32\): the network takes images of 16 pixels"),
        ("data.batch_size=41", r"^data\.batch_size \(41\): the training split has 40 images"),
        ("finetune.exit_weights=[0.5,0.5]", r"one number per exit, 1 here"),
        ("finetune.exit_weights=best", r"name no known scheme"),
    ],
)
def test_impossible_settings_of_a_fine_tuning_are_refused_by_name(
    setting: str, message: str, extracted: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(extracted, [setting], out=tmp_path / "out")
    assert files_below(tmp_path) == []


def test_images_of_other_channels_are_refused(extracted: Path, tmp_path: Path, serve: Serve) -> None:
    serve(images(bands=("grey",)))
    with pytest.raises(UserError, match="have 1 channels, and the network takes 3"):
        finetune(extracted, out=tmp_path / "out")


def test_images_in_other_units_are_refused(
    extracted: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of patches, the stored number 1 counts as 1, and a network of pictures was trained on 1/255 of that."""
    serve(images(white=1.0))
    message = "pixels whose value 1 counts as 1, and the network was trained on ones where 255 does"
    with pytest.raises(UserError, match=message):
        finetune(extracted, out=tmp_path / "out")
    monkeypatch.setattr("ofav2.inference.evaluate.open_data", setup.open_data)
    with pytest.raises(UserError, match=message):
        ofav2.evaluate_network(extracted)


def test_folders_that_are_not_what_they_should_be_are_refused(tiny_run: Any, extracted: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no subnet\.json"):
        finetune(tiny_run.folder, out=tmp_path / "out")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        finetune(extracted, out=tmp_path)
    assert files_below(tmp_path) == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_training(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_run, "find_epochs", lambda _: pytest.fail("trains"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"output folder \(.*file/out\) cannot be written"):
        finetune(extracted, out=tmp_path / "file" / "out")


def test_several_processes_are_refused(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def two() -> Iterator[Processes]:
        yield Processes(count=2)

    monkeypatch.setattr(finetune_run, "process_group", two)
    with pytest.raises(UserError, match=r"WORLD_SIZE \(2\): fine-tuning takes one process"):
        finetune(extracted, out=tmp_path / "out")


@pytest.mark.parametrize("when", ["training", "writing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(
    when: str, number: signal.Signals, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    module, name = (learn, "exit_scores") if when == "training" else (files, "write_json")
    monkeypatch.setattr(module, name, lambda *_: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt):
        finetune(extracted, QUICK, out=tmp_path / "out")
    assert files_below(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == before


DAMAGE: tuple[tuple[str, Any], ...] = (
    ("classes", None),
    ("classes", ["0", "1"]),
    ("classes", [*range(10)]),
    ("input", {}),
    ("input", {"mean": [0.5], "std": [0.5]}),
    ("input", {"mean": ["x"] * 3, "std": [0.5] * 3}),
    ("input", {"mean": [7, 7, 7], "std": [0.5] * 3}),
    ("provenance", 3),
    ("provenance", {"recipe": "data: {name: digits}"}),
    ("provenance", {"recipe": 3, "phase": "expand"}),
    ("provenance", {"recipe": "a: [", "phase": "expand"}),
    ("scores", {"test": {}}),
    ("data", None),
    ("finetuning", "x"),
    ("finetuning", [3]),
    ("finetuning", [{"recipe": "run: {}"}]),
    ("finetuning", {"recipe": "run: {}"}),
)


@pytest.mark.parametrize(("key", "value"), DAMAGE, ids=lambda value: str(value)[:30])
def test_a_damaged_description_is_refused_before_anything_is_computed(
    key: str, value: Any, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_run, "find_epochs", lambda _: pytest.fail("trains"))
    facts = json.loads((extracted / "subnet.json").read_text())
    changed = {**facts[key], **value} if isinstance(value, dict) and isinstance(facts[key], dict) else value
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes((extracted / "model.safetensors").read_bytes())
    (damaged / "subnet.json").write_text(
        json.dumps({k: v for k, v in {**facts, key: changed}.items() if v is not None})
    )
    with pytest.raises(UserError) as refused:
        finetune(damaged, out=tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
