"""Dense tasks go through everything: phases, evaluation, extraction, reports, search, fine-tuning, another start."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

import ofav2
from ofav2.cli.main import main
from ofav2.data.patches import IGNORED
from ofav2.data.seen import seen_digests
from ofav2.deploy.artifact import load_subnet
from ofav2.deploy.seen import read_seen
from ofav2.errors import RunError, UserError
from ofav2.evaluation.maps import _class_maps, _number_maps
from ofav2.inference.evaluate import MetricsReport, evaluate_network
from ofav2.runs.records import Run, read_run
from ofav2.timm_plugin.stock import as_timm_mobilenetv3
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.tasks import dense
from tests.ofav2.test_resume import at, stopped_after


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of patches."""
    return dense.write_patches(tmp_path_factory.mktemp("data") / "patches")


def train(folder: Path, text: str, *overrides: str) -> Run:
    return ofav2.train(tiny.written(folder, text), overrides, folder / "run")


@pytest.fixture(scope="module")
def segmented(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `segment`, through all phases; to look at only."""
    return train(tmp_path_factory.mktemp("segment"), dense.recipe("segment", patches, "cover"))


@pytest.fixture(scope="module")
def regressed(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `regress`, with a teacher; to look at only."""
    text = dense.recipe("regress", patches, "height", phases=dense.TWO_PHASES, more=dense.DISTANCE)
    return train(tmp_path_factory.mktemp("regress"), text)


@pytest.fixture(scope="module")
def pretrained(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `reconstruct`, with height as a further plane; to look at only."""
    text = dense.recipe("reconstruct", patches, "height", phases=dense.ONE_PHASE, more=dense.DISTANCE)
    return train(tmp_path_factory.mktemp("reconstruct"), text)


def lines(run: Run, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_a_supernet_learns_to_segment_and_to_regress(segmented: Run, regressed: Run, pretrained: Run) -> None:
    for run, metric in ((segmented, "mIoU"), (regressed, "R2"), (pretrained, "R2")):
        assert run.record.status == "finished"
        assert run.record.metric.name == metric
        assert all(math.isfinite(line["loss"]) for line in lines(run, "train"))
        full = [line["loss"] for line in lines(run, "train") if line["phase"] == "full"]
        assert full[-1] < full[0]
    assert segmented.record.architecture.num_classes == 3
    assert pretrained.record.architecture.num_classes == len(dense.BANDS) + 1


def test_other_shots_at_a_resume_are_refused_or_drawn_anew(patches: Path, tmp_path: Path) -> None:
    text = dense.recipe("segment", patches, "cover", phases=dense.ONE_PHASE)
    with stopped_after(at("full", 1)):
        train(tmp_path, text, "data.shots=8")
    run = tmp_path / "run"
    assert read_run(run).data.images.train == 8
    with pytest.raises(RunError, match=r"data\.\S+ was .*--allow-change data"):
        ofav2.resume(run, overrides=["data.shots=16"], allow=["data.shots"])
    assert ofav2.resume(run, overrides=["data.shots=16"], allow=["data"]).record.data.images.train == 16


def test_an_extracted_network_takes_its_bands_by_name(segmented: Run, patches: Path, tmp_path: Path) -> None:
    """Files with another order of bands give the same scores, and the same fine-tuning."""
    run = ofav2.open_run(segmented.folder)
    ofav2.extract(run, run.loaded.net.space.largest(), tmp_path / "largest", formats=())
    other = Path(shutil.copytree(patches, tmp_path / "other"))
    text = (other / "patches.yaml").read_text(encoding="utf-8")
    described = yaml.safe_load(text)
    assert described["bands"] == [*dense.BANDS]
    (other / "patches.yaml").write_text(yaml.safe_dump({**described, "bands": [*dense.BANDS[::-1]]}), encoding="utf-8")
    for name in dense.COUNTS:
        np.save(other / f"{name}_images.npy", stored(other, name, "images")[..., ::-1])
    first, second = (
        evaluate_network(tmp_path / "largest", [f"data.root={root}", "run.threads=1"]) for root in (patches, other)
    )
    assert isinstance(first, MetricsReport)
    assert isinstance(second, MetricsReport)
    assert first.exits == second.exits
    tuned = ofav2.finetune(
        tmp_path / "largest",
        [f"data.root={other}", "finetune.epochs=1", "run.threads=1"],
        out=tmp_path / "tuned",
        formats=(),
    )
    assert tuned.input.bands == dense.BANDS


def test_stock_models_of_timm_give_no_maps(segmented: Run, tmp_path: Path) -> None:
    run = ofav2.open_run(segmented.folder)
    ofav2.extract(run, run.loaded.net.space.largest(), tmp_path / "largest", formats=())
    with pytest.raises(UserError, match=r"returns maps, .* features_only=True"):
        timm.create_model("ofav2_subnet", subnet_dir=str(tmp_path / "largest"))
    with pytest.raises(UserError, match="returns maps"):
        as_timm_mobilenetv3(tmp_path / "largest")
    assert timm.create_model("ofav2_subnet", subnet_dir=str(tmp_path / "largest"), features_only=True)


def stored(root: Path, name: str, kind: str) -> Any:
    return np.load(root / f"{name}_{kind}.npy")


def inputs(root: Path, run: Run) -> torch.Tensor:
    """The test images, normalised by hand."""
    images = stored(root, "test", "images").astype(np.float64)
    train = stored(root, "train", "images").astype(np.float64)
    valid = (train != -9999).all(-1)
    mean, std = train[valid].mean(0), train[valid].std(0)
    np.testing.assert_allclose(run.record.data.mean, mean, rtol=1e-5)
    normalised = np.where((images != -9999).all(-1, keepdims=True), (images - mean) / std, 0)
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float()


def test_an_extracted_segmentation_has_the_iou_that_a_plain_loop_finds(
    segmented: Run, patches: Path, tmp_path: Path
) -> None:
    run = ofav2.open_run(segmented.folder)
    largest = run.loaded.net.space.largest()
    written = ofav2.extract(run, largest, tmp_path / "largest", "all", formats=("card",))
    truth = stored(patches, "test", "cover").astype(int)
    truth[(stored(patches, "test", "images") == -9999).any(-1)] = 9
    with torch.inference_mode():
        outputs = load_subnet(tmp_path / "largest")(inputs(patches, segmented))
    for exit, output in enumerate(outputs, 1):
        found = output.argmax(1).numpy()
        ious = [
            ((found == code) & (truth == code)).sum() / (((found == code) & (truth != 9)) | (truth == code)).sum()
            for code in range(3)
        ]
        assert written.scores["test"][exit] == pytest.approx(np.mean(ious), abs=0.01)
    assert written.scores["test"][5] == pytest.approx(segmented.record.test.largest, abs=1e-9)
    assert written.input.bands == dense.BANDS
    assert written.input.nodata == -9999
    card = (tmp_path / "largest" / "model_card.md").read_text("utf-8")
    assert "3 outputs for each pixel" in card
    assert "`nir`" in card


def test_an_extracted_regression_has_the_r2_that_a_plain_loop_finds(
    regressed: Run, patches: Path, tmp_path: Path
) -> None:
    run = ofav2.open_run(regressed.folder)
    written = ofav2.extract(run, run.loaded.net.space.smallest(), tmp_path / "small", formats=())
    truth = stored(patches, "test", "height").astype(float)
    truth[(stored(patches, "test", "images") == -9999).any(-1)] = np.nan
    with torch.inference_mode():
        output = load_subnet(tmp_path / "small")(inputs(patches, regressed))[:, 0].double().numpy()
    expected = 1 - np.nanmean((output - truth) ** 2) / np.nanvar(truth)
    (found,) = written.scores["test"].values()
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_commands_name_only_the_metric(segmented: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(segmented.folder)
    commands = (
        ("evaluate", run),
        ("extract", run, "--max-macs", "10G", "--candidates", "3", "--out", str(tmp_path / "chosen")),
        ("report", run, "--out", str(tmp_path / "report.html")),
        ("search", run, "--measurements", "8", "--out", str(tmp_path / "search")),
    )
    for command in commands:
        assert main(command) == 0, "".join(capsys.readouterr())
        shown = "".join(capsys.readouterr())
        assert "top-1" not in shown.lower(), command
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "mIoU" in page
    assert all(page.count(f'alt="{name} of test image') == 6 for name in ("image", "target", "output", "error"))


def test_an_extracted_networks_metrics_are_shown_by_exit(
    segmented: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ofav2.open_run(segmented.folder)
    written = ofav2.extract(run, run.loaded.net.space.largest(), tmp_path / "all", "all", formats=())
    found = evaluate_network(tmp_path / "all")
    assert isinstance(found, MetricsReport)
    assert found.same_images
    assert {exit: values["mIoU"] for exit, values in found.exits.items()} == pytest.approx(written.scores["test"])
    assert main(["evaluate", str(tmp_path / "all")]) == 0
    assert "IoU wood" in capsys.readouterr().out


def test_maps_show_targets_outputs_and_where_they_differ() -> None:
    truths = np.array([[[0, 1], [IGNORED, 1]]])
    target, output, error = _class_maps(truths, np.array([[[0, 0], [1, 1]]]))
    assert target[0, 0, 0].tolist() == output[0, 0, 1].tolist() == [0, 0x72, 0xB2]
    assert target[0, 1, 0].tolist() == [0, 0, 0]
    right, wrong = [0xE8] * 3, [0xC0, 0x39, 0x2B]
    assert error[0].tolist() == [[right, wrong], [[0, 0, 0], right]]
    numbers = np.array([[[0.0, 1.0], [np.nan, 0.5]]], np.float32)
    keys, error_keys, (target, output, error) = _number_maps(numbers, np.array([[[0.0, 2.0], [5.0, 0.5]]], np.float32))
    assert [key.name for key in keys] == ["0", "0.5", "1"]
    assert [key.name for key in error_keys] == ["-1", "+0", "+1"]
    assert target[0, 0].tolist() == output[0, 0].tolist(), "beyond the range, colours stay at its end"
    assert error[0, 0, 0].tolist() == error[0, 1, 1].tolist() == [0xF7] * 3
    assert error[0, 1, 0].tolist() == [0, 0, 0]


@pytest.mark.slow
def test_a_network_is_fine_tuned_on_its_task(segmented: Run, tmp_path: Path) -> None:
    run = ofav2.open_run(segmented.folder)
    ofav2.extract(run, run.loaded.net.space.smallest(), tmp_path / "small", formats=())
    settings = ["finetune.epochs=1", "finetune.lr=0.001"]
    tuned = ofav2.finetune(tmp_path / "small", settings, out=tmp_path / "tuned", formats=())
    assert tuned.finetuning[-1].epochs == 1
    assert not tuned.finetuning[-1].new_classifiers


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mixup=0.2"], "data.mixup"),
        (["teacher.policy=timm:resnet18"], "timm's networks have no maps to teach task segment with"),
        (["network.kind=timm", "network.name=resnet18"], r"network.kind \(timm\).* no dense heads"),
        (["task=classification"], r"task \(classification\): needs targets that are classes.* set task=segment"),
        (["data.target=height"], r"task \(segment\): needs targets that are codes.* set task=regress"),
        (["task=regress", "data.target=height"], r"teacher.distance \(cross_entropy\) makes no sense.* use mse"),
        (
            ["task=regress", "data.target=height", "teacher.distance=mse", "optim.class_weights=log"],
            r"optim.class_weights \(log\) needs classes",
        ),
        (["supernet.frozen=true"], r"supernet.frozen \(true\).*set supernet.init=RUN"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    overrides: list[str], message: str, patches: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(tmp_path, dense.recipe("segment", patches, "cover"), *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_targets_of_which_none_counts_are_refused_before_training(split: str, patches: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(patches, tmp_path / "patches"))
    for path in other.glob(f"{split}_cover.npy"):
        np.save(path, np.full_like(np.load(path), 199))
    with pytest.raises(UserError, match=f"no pixel of {split} "):
        train(tmp_path, dense.recipe("segment", other, "cover"))
    assert not (tmp_path / "run").exists()


def test_early_exits_and_predictions_need_classes_of_images(segmented: Run, tmp_path: Path) -> None:
    run = ofav2.open_run(segmented.folder)
    ofav2.extract(run, run.loaded.net.space.largest(), tmp_path / "all", "all", formats=())
    with pytest.raises(UserError, match=r"task \(segment\) has no classes"):
        ofav2.calibrate_exits(tmp_path / "all")
    assert main(["predict", str(tmp_path / "all"), "x.png"]) == 2


def test_a_run_starts_from_another_ones_weights(pretrained: Run, patches: Path, tmp_path: Path, notes: Notes) -> None:
    text = dense.recipe("segment", patches, "cover", phases=dense.ONE_PHASE)
    init = f"supernet.init={pretrained.folder}"
    run = train(tmp_path, text, init, "supernet.frozen=true")
    assert "only heads are trained" in notes()
    initial = read_run(run.folder).initial
    assert initial is not None
    assert initial.sha256 == pretrained.record.phases[-1].sha256
    assert set(initial.fresh) == {
        f"exits.{exit}.classifier.{kind}" for exit in range(1, 6) for kind in ("weight", "bias")
    }
    before, after = (dict(ofav2.load_supernet(one.folder).named_parameters()) for one in (pretrained, run))
    for name, weight in after.items():
        if not name.startswith("exits."):
            assert torch.equal(weight, before[name]), name
    assert any(not torch.equal(after[name], before[name]) for name in after if "laterals" in name)


def test_a_start_in_another_supernet_is_refused(pretrained: Run, patches: Path, tmp_path: Path) -> None:
    text = dense.recipe("segment", patches, "cover", phases=dense.ONE_PHASE)
    changes = {
        "supernet.depth=[1,3]": "weight .* has shape",
        "data.bands=[red,nir]": "its images have the bands",
        f"data.bands=[{','.join(reversed(pretrained.record.data.bands))}]": "give the same in the same order",
    }
    for change, message in changes.items():
        with pytest.raises(UserError, match=rf"supernet.init .*{message}"):
            train(tmp_path, text, f"supernet.init={pretrained.folder}", change)


def exchanged(patches: Path, out: Path, split: str) -> Path:
    """A copy of patches in which a split and the training split have changed places."""
    shutil.copytree(patches, out)
    text = (patches / "patches.yaml").read_text().replace(f"split: {split}", "split: hold")
    text = text.replace("split: train", f"split: {split}").replace("split: hold", "split: train")
    (out / "patches.yaml").write_text(text)
    return out


KNOWN = r"was trained on 24 of the 24 images of this run's split {}"


def test_a_start_that_learnt_targets_of_test_images_is_refused(
    segmented: Run, pretrained: Run, patches: Path, tmp_path: Path
) -> None:
    others = exchanged(patches, tmp_path / "patches", "test")
    regress = dense.recipe("regress", others, "height", phases=dense.ONE_PHASE, more=dense.DISTANCE)
    segment = dense.recipe("segment", others, "cover", phases=dense.ONE_PHASE)
    for text, init in ((segment, segmented), (regress, segmented), (regress, pretrained)):
        with pytest.raises(UserError, match=rf"^supernet.init \(.*\): {KNOWN.format('test')}.*the same splits"):
            train(tmp_path, text, f"supernet.init={init.folder}", "data.batch_size=4")
        settings = [f"supernet.init={init.folder}", "data.batch_size=4"]
        assert main(["plan", tiny.written(tmp_path, text), *settings]) == 2
    assert not (tmp_path / "run").exists()


def test_a_target_is_the_same_whether_a_recipe_names_it_or_not(patches: Path, tmp_path: Path) -> None:
    """A folder's only target needs no name."""
    single = Path(shutil.copytree(patches, tmp_path / "single"))
    described = yaml.safe_load((single / "patches.yaml").read_text(encoding="utf-8"))
    del described["targets"]["cover"]
    for part in described["parts"]:
        del part["targets"]["cover"]
    (single / "patches.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    text = dense.recipe("reconstruct", single, "null", phases=dense.ONE_PHASE, more=dense.DISTANCE)
    init = train(tmp_path, text, "phases.full.epochs=0.1").folder
    others = exchanged(single, tmp_path / "others", "test")
    for target in ("height", "null"):
        regress = dense.recipe("regress", others, target, phases=dense.ONE_PHASE, more=dense.DISTANCE)
        with pytest.raises(UserError, match=KNOWN.format("test")):
            ofav2.train(
                tiny.written(tmp_path, regress, target),
                [f"supernet.init={init}", "data.batch_size=4"],
                tmp_path / f"run-{target}",
            )


def test_what_in_place_distillation_makes_no_sense_of_is_refused_at_once(patches: Path, tmp_path: Path) -> None:
    text = dense.recipe("regress", patches, "height", phases=dense.ONE_PHASE)
    text += "  height: {epochs: 0.4, lr: 0.002, objective: in_place, sampler: sandwich, subnets: 3, "
    text += "unlock: {height: [1, 2, 3, 4, 5]}}\n"
    with pytest.raises(UserError, match=r"teacher\.distance \(.*\) makes no sense for the task regress"):
        train(tmp_path, text, "teacher.distance=cross_entropy")


def test_a_start_that_saw_images_that_are_held_out_is_told(
    segmented: Run, pretrained: Run, patches: Path, tmp_path: Path, notes: Notes
) -> None:
    def start(others: Path, init: Run) -> str:
        text = dense.recipe("segment", others, "cover", phases=dense.ONE_PHASE)
        settings = (f"supernet.init={init.folder}", "phases.full.epochs=0.1", "data.batch_size=4")
        ofav2.resume(train(tmp_path, text, *settings).folder)
        shutil.rmtree(tmp_path / "run")
        return notes()

    assert not re.search("was trained on .* of this run|known for certain", start(patches, segmented))
    test = exchanged(patches, tmp_path / "test", "test")
    without_planes = dense.recipe("reconstruct", patches, "cover", phases=dense.ONE_PHASE, more=dense.DISTANCE)
    images_alone = train(tmp_path / "pre", without_planes, "phases.full.epochs=0.1")
    for init in (pretrained, images_alone):
        assert re.search(f"{KNOWN.format('test')}, without the targets that are learnt now", start(test, init))
    # Such images are allowed as test images, so they are of what is extracted, too.
    text = dense.recipe("segment", test, "cover", phases=dense.ONE_PHASE)
    run = train(tmp_path, text, f"supernet.init={pretrained.folder}", "phases.full.epochs=0.1", "data.batch_size=4")
    opened = ofav2.open_run(run.folder)
    written = ofav2.extract(opened, opened.loaded.net.space.largest(), tmp_path / "net", formats=())
    assert np.array_equal(read_seen(tmp_path / "net", written), seen_digests(opened.data))
    shutil.rmtree(tmp_path / "run")
    notes()
    val = exchanged(patches, tmp_path / "val", "val")
    said = start(val, segmented)
    assert re.search(f"{KNOWN.format('val')}, so validation scores are too good", said)
    assert said.count("was trained on") == 1, "a run that goes on was asked when it began"
    patches.rename(tmp_path / "elsewhere")
    try:
        gone = start(test, segmented)
        shutil.copytree(tmp_path / "elsewhere", patches)
        np.save(patches / "train_images.npy", np.load(patches / "train_images.npy")[::-1])
        rewritten = start(test, segmented)
        shutil.rmtree(patches)
    finally:
        (tmp_path / "elsewhere").rename(patches)
    assert "known for certain: its own can't be opened as they were: " in gone
    assert "known for certain: its own can't be opened as they were: data set (patches) holds other images" in rewritten


def test_scores_do_not_depend_on_batches(segmented: Run) -> None:
    run = ofav2.open_run(segmented.folder)
    net, split = run.loaded.net, run.data.test
    subnets = [net.space.largest(), replace(net.space.largest(), height=2)]
    whole = {score.subnet: score for score in run.evaluator.scores(net, subnets, split)}
    run.evaluator.config = replace(run.evaluator.config, batch_size=4)
    parts = {score.subnet: score for score in run.evaluator.scores(net, subnets, split)}
    assert parts == whole
