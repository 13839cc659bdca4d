"""Files made to do harm: whatever they hold, nothing in them runs, and what is wrong is reported in one line."""

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save

import ofav2
from ofav2 import files
from ofav2.cli.main import main
from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data import open_data
from ofav2.errors import RunError, UserError
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import read_run, write_run
from ofav2.runs.state import load_newest
from supernets.architecture import architecture
from tests.memory import GIB, peak
from tests.notes import Notes
from tests.ofav2 import tiny
from tests.ofav2.changes import change_facts
from tests.ofav2.data.conftest import write_classes, write_image
from tests.ofav2.fuzzing import JUNK, accepted, changed, fuzz


class Bomb:
    """What touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two phases, with a state of the last one; to look at only."""
    parent = tmp_path_factory.mktemp("short")
    return ofav2.train(tiny.written(parent, tiny.TWO), run_dir=parent / "run").folder


@pytest.fixture
def run(short_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(short_run, tmp_path / "run"))


@pytest.fixture
def subnet(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "subnet"))


def sign(tensor_file: Path, facts_file: Path, content: bytes) -> None:
    """Puts a file where tensors were, with its checksum where theirs was: all that who made it can do."""
    tensor_file.write_bytes(content)
    facts = json.loads(facts_file.read_bytes())
    facts_file.write_text(json.dumps(facts | {"sha256": hashlib.sha256(content).hexdigest()}))


def sign_checkpoint(run: Path, name: str, content: bytes) -> None:
    tensors, facts = checkpoint.file_paths(run / folder.CHECKPOINTS / name)
    sign(tensors, facts, content)
    record, sha256 = read_run(run), hashlib.sha256(content).hexdigest()
    phases = tuple(replace(phase, sha256=sha256) if phase.name == name else phase for phase in record.phases)
    states = {**record.states, name: sha256} if name in record.states else record.states
    write_run(run, replace(record, phases=phases, states=states))


def unfinished(run: Path, phases: int = 1) -> Path:
    """The run as if its later phases were not finished."""
    record = read_run(run)
    write_run(run, replace(record, status="training", phases=record.phases[:phases]))
    return run


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(RunError) as error:
        do()
    message = str(error.value)
    assert "\n" not in message
    return message


# Tensors


def header(text: bytes, claimed: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


def entry(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    return json.dumps({"classifier.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


ODD_TENSORS = {
    "empty": b"",
    "no header": b"\x00" * 8,
    "zip": b"PK\x03\x04" + bytes(100),
    "huge header claimed": header(b"{}", 2**63 - 1),
    "header past the end": header(b"{}", 10**6),
    "header of 120 MB": header(b'{"__metadata__":{"a":"' + b"x" * 120_000_000 + b'"}}'),
    "header no JSON": header(b"{" * 50),
    "header nested": header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "negative shape": header(entry("F32", [-1], [0, 4]), body=bytes(4)),
    "shape past any memory": header(entry("F32", [2**40, 2**40], [0, 4]), body=bytes(4)),
    "offsets past the end": header(entry("F32", [4], [0, 16]), body=bytes(4)),
    "offsets backwards": header(entry("F32", [1], [4, 0]), body=bytes(4)),
    "unknown type": header(entry("PICKLE", [1], [0, 4]), body=bytes(4)),
    "type that torch has not": header(entry("F4", [2], [0, 1]), body=bytes(1)),
    "sizes that differ": header(entry("F32", [3], [0, 4]), body=bytes(4)),
    "name twice": header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', body=bytes(1)),
}


@pytest.mark.parametrize("content", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_signed_files_that_are_no_tensors_are_refused(content: bytes, run: Path, subnet: Path) -> None:
    sign_checkpoint(run, "kernel", content)
    refused(lambda: ofav2.load_supernet(run))
    sign(subnet / "model.safetensors", subnet / "subnet.json", content)
    refused(lambda: ofav2.load_subnet(subnet))


def bombs(marker: Path) -> dict[str, bytes]:
    zipped = marker.with_name("bomb.pt")
    torch.save({"classifier.weight": Bomb(marker)}, zipped)
    return {"pickle": pickle.dumps(Bomb(marker)), "torch": zipped.read_bytes()}


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_named_otherwise_do_not_run(kind: str, run: Path, subnet: Path, tmp_path: Path, notes: Notes) -> None:
    marker = tmp_path / "ran"
    bomb = bombs(marker)[kind]
    sign_checkpoint(run, "kernel", bomb)
    refused(lambda: ofav2.load_supernet(run))
    sign(subnet / "model.safetensors", subnet / "subnet.json", bomb)
    refused(lambda: ofav2.load_subnet(subnet))
    for file in (subnet / "subnet.json", run / folder.CHECKPOINTS / "full.json"):
        file.write_bytes(bomb)
    refused(lambda: ofav2.load_subnet(subnet))
    refused(lambda: ofav2.load_supernet(run, "full"))
    # A resumed run reads its states and checkpoints, says what they are, and starts anew.
    for state in (run / folder.CHECKPOINTS).glob("state-*.json"):
        sign_checkpoint(run, state.stem, bomb)
    ofav2.resume(unfinished(run, 2))
    assert notes().count("going back to the phase before it") == 2
    (run / folder.RECORD).write_bytes(bomb)
    refused(lambda: ofav2.resume(run))
    assert not marker.exists()
    pickle.loads(bombs(marker)["pickle"])
    assert marker.exists(), "the bomb is one"


def test_a_teacher_from_a_pickle_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "teacher.pth").write_bytes(bombs(marker)["torch"])
    settings = [
        "data.resolutions=[32]",
        "phases.kernel.teacher=timm:test_resnet",
        f"teacher.checkpoint={tmp_path / 'teacher.pth'}",
        "teacher.mean=[0.5,0.5,0.5]",
        "teacher.std=[0.5,0.5,0.5]",
    ]
    arguments = ["train", tiny.written(tmp_path, tiny.TWO), *settings, "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors | {name: tensors[name][None]},
        lambda tensors, name: tensors | {name: tensors[name].double()},
        lambda tensors, name: tensors | {"more": tensors[name].clone()},
        lambda tensors, name: {key: value for key, value in tensors.items() if key != name},
        lambda tensors, name: {},
    ],
    ids=["shape", "type", "one more", "one less", "none"],
)
def test_signed_tensors_that_do_not_fit_are_refused(change: Any, run: Path, subnet: Path) -> None:
    for name in ("kernel", "full"):
        sign_checkpoint(run, name, wrong(run / folder.CHECKPOINTS / f"{name}.safetensors", change))
    assert "fit" in refused(lambda: ofav2.load_supernet(run))
    assert "fit" in refused(lambda: ofav2.resume(unfinished(run)))
    weights = subnet / "model.safetensors"
    sign(weights, subnet / "subnet.json", wrong(weights, change))
    assert "fit" in refused(lambda: ofav2.load_subnet(subnet))


def wrong(file: Path, change: Any) -> bytes:
    tensors = load(file.read_bytes())
    return save({key: value.contiguous() for key, value in change(tensors, min(tensors)).items()})


def widened(facts: dict[str, Any]) -> None:
    """Describe the same network 20 times as wide as the paper's, which takes gigabytes."""
    given = facts["architecture"]
    options = {name: given[name] for name in ("num_classes", "stem_stride", "in_channels")}
    choices = {name: tuple(given[name]) for name in ("kernel", "expand", "depth")}
    wide = architecture(given["variant"], width_mult=20.0, head_width=None, **options, **choices)
    facts["architecture"] = wide.to_dict()


def test_a_network_is_compared_with_its_file_before_it_takes_memory(run: Path, subnet: Path) -> None:
    change_facts(run, widened)
    described = json.loads((subnet / "subnet.json").read_bytes())
    widened(described)
    (subnet / "subnet.json").write_text(json.dumps(described))
    assert peak(lambda: refused(lambda: ofav2.load_supernet(run))) < GIB / 4
    assert peak(lambda: refused(lambda: ofav2.load_subnet(subnet))) < GIB / 4


@pytest.mark.parametrize("group", ["net", "best", "optimizer"])
def test_signed_states_that_do_not_fit_are_refused(group: str, run: Path) -> None:
    newest = max((run / folder.CHECKPOINTS).glob("state-*.json")).stem
    tensors, _ = checkpoint.load(run / folder.CHECKPOINTS / newest)
    sign_checkpoint(run, newest, save({key: value for key, value in tensors.items() if not key.startswith(group)}))
    if group == "optimizer":
        # As that of an optimiser that has taken no step: there is nothing to tell it from a real one.
        assert load_newest(run, "kernel") is not None
        return
    refused(lambda: ofav2.resume(unfinished(run)))


@fuzz(150)
@given(content=st.binary(max_size=200) | st.binary(max_size=200).map(header))
def test_any_signed_bytes_are_tensors_or_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    found = accepted(lambda: checkpoint.read_tensors(file, hashlib.sha256(content).hexdigest(), "a.json"))
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@fuzz(150)
@given(
    position=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    length=st.integers(0, 10**6) | st.none(),
)
def test_any_damage_to_signed_tensors_is_tensors_or_refused(
    position: int, byte: int, length: int | None, tmp_path: Path
) -> None:
    content = bytearray(save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.int64)}))
    content[position % len(content)] = byte
    data = bytes(content[: len(content) if length is None else length % len(content)])
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    found = accepted(lambda: checkpoint.read_tensors(file, hashlib.sha256(data).hexdigest(), "a.json"))
    assert found is None or len(found) <= 2


@fuzz(60)
@given(position=st.integers(0, 10**7), bit=st.integers(0, 7), tensors=st.booleans())
def test_any_flipped_bit_of_a_state_is_found(
    position: int, bit: int, tensors: bool, short_run: Path, notes: Notes
) -> None:
    newest = max((short_run / folder.CHECKPOINTS).glob("state-*.json")).with_suffix("")
    whole = load_newest(short_run, "kernel")
    assert whole is not None
    file = checkpoint.file_paths(newest)[0 if tensors else 1]
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[position % len(content)] ^= 1 << bit
    try:
        file.write_bytes(flipped)
        found = load_newest(short_run, "kernel")
    finally:
        file.write_bytes(content)
    if found is not None and found.progress == whole.progress:
        assert not tensors, "only blanks of the text may change unseen"
        assert tiny.same_bits(found.net, whole.net)
    else:
        assert file.name in notes()


# Facts


@fuzz(60)
@given(data=st.data())
def test_any_facts_of_a_run_load_or_are_refused(data: st.DataObject, short_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(short_run, copy, dirs_exist_ok=True)
    facts = changed(json.loads((short_run / folder.RECORD).read_bytes()), data.draw, JUNK)
    (copy / folder.RECORD).write_text(json.dumps(facts), encoding="utf-8")
    net = accepted(lambda: ofav2.load_supernet(copy))
    assert net is None or net.space.size() >= 1


@fuzz(60)
@given(data=st.data())
def test_any_description_of_a_network_loads_or_is_refused(data: st.DataObject, extracted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "subnet"
    shutil.copytree(extracted, copy, dirs_exist_ok=True)
    facts = changed(json.loads((extracted / "subnet.json").read_bytes()), data.draw, JUNK)
    (copy / "subnet.json").write_text(json.dumps(facts), encoding="utf-8")
    module = accepted(lambda: ofav2.load_subnet(copy))
    assert module is None or isinstance(module, torch.nn.Module)


@pytest.mark.parametrize(
    "name",
    ["../../elsewhere/kernel", "/etc/passwd", "a/b", "..", "", "a\x00b", "a\nb", "state-1", "test", 7, None, ["full"]],
)
def test_phases_do_not_lead_out_of_the_run_folder(name: Any, run: Path) -> None:
    elsewhere = run.parent / "elsewhere"
    shutil.copytree(run / folder.CHECKPOINTS, elsewhere)
    change_facts(run, lambda facts: facts["phases"][-1].update(name=name))
    refused(lambda: ofav2.load_supernet(run))
    refused(lambda: ofav2.resume(run))
    assert main(["evaluate", str(run), "--phase", str(name).replace("\x00", "")]) == 2


# Recipes


@pytest.mark.parametrize(
    "line",
    [
        "run: !!python/object/apply:os.mkdir [MARKER]",
        "run: !!python/object/new:os.mkdir [MARKER]",
        "run: {folder: '${oc.env:HOME}'}",
        "run: {folder: '${oc.decode:MARKER}'}",
        "run: &a {seed: *a}",
        "_target_: os.mkdir",
        "run: {<<: {seed: 1}}",
    ],
)
def test_recipes_run_nothing_and_interpolate_nothing(line: str, run: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = f"data: {{name: digits}}\nphases: {{full: {{epochs: 1, lr: 0.1}}}}\n{line.replace('MARKER', str(marker))}\n"
    with pytest.raises(UserError) as error:
        recipe.load(tiny.written(tmp_path, text, "evil"))
    assert "\n" not in str(error.value)
    # The recipe that a run has kept is read with the same care.
    (run / folder.RECIPE).write_text(text)
    with pytest.raises(UserError):
        ofav2.resume(run)
    with pytest.raises(UserError):
        ofav2.open_run(run)
    assert not marker.exists()


@pytest.mark.parametrize(
    "override",
    [
        "phases.full.epochs=0",
        "phases.full.epochs=1e9",
        "phases.full.lr=.inf",
        "phases.full.subnets=1000000000",
        "data.workers=1000000",
        "data.resolutions=[1000000000]",
        "data.batch_size=1000000000",
        "data.batch_size=1",
        "data.eval_crop=1e-300",
        "run.threads=1000000000",
        "run.seed=100000000000000000000",
        "supernet.width_mult=1e9",
        "supernet.kernel=[1000000001]",
        "supernet.expand=[1000000000]",
        "supernet.depth=[1000000000]",
        "evaluation.every_epochs=5e-324",
    ],
)
def test_nothing_and_far_too_much_are_refused_before_anything_is_made(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", tiny.written(tmp_path, tiny.TWO), override, "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    reported = capsys.readouterr().err
    assert reported.startswith("ofav2: ")
    assert reported.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Images


def imagefolder(root: Path) -> DataConfig:
    return DataConfig("imagefolder", str(root), resolutions=(16,), batch_size=4)


def test_odd_names_of_classes_are_kept(tmp_path: Path) -> None:
    odd = ["ä ö", "<script>", "a'b\"c", "-x", "%s", "CON", "名前"]
    # A leading dot hides a folder.
    write_classes(tmp_path / "images", dict.fromkeys([*odd, ".hidden", "..a"], 4))
    classes = open_data(imagefolder(tmp_path / "images")).classes
    assert sorted(classes) == sorted(odd)
    files.write_json(tmp_path / "facts.json", {"classes": list(classes)})
    assert files.read_json(tmp_path / "facts.json")["classes"] == list(classes)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"a\x1b[2Jb"])
@pytest.mark.parametrize("of", ["class", "image"])
def test_names_that_cannot_be_printed_are_refused(of: str, name: bytes, tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    renamed = tmp_path / "cat" if of == "class" else tmp_path / "cat" / "000.jpg"
    renamed.rename(renamed.with_name(os.fsdecode(name) + renamed.suffix))
    with pytest.raises(UserError, match="is no name that can be printed") as error:
        open_data(imagefolder(tmp_path))
    assert "\n" not in str(error.value)


def test_odd_names_of_images_are_read(tmp_path: Path) -> None:
    names = ("a b.png", "ä.png", "-.png", "%d.PNG", "a'b.png", "名前.png")
    for kind in ("cat", "dog"):
        for name in names:
            write_image(tmp_path / kind / name)
    data = open_data(imagefolder(tmp_path))
    assert len(data.train) + len(data.val) + len(data.test) == 2 * len(names)
    assert all(data.train.image(index).shape == (3, 10, 12) for index in range(len(data.train)))


@pytest.mark.parametrize("what", ["nothing", "no folder", "empty classes", "one class", "one image each"])
def test_no_data_are_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "images"
    if what != "no folder":
        root.mkdir()
    counts = {"empty classes": {"cat": 0, "dog": 0}, "one class": {"cat": 9}, "one image each": {"cat": 1, "dog": 1}}
    for name, count in counts.get(what, {}).items():
        (root / name).mkdir()
        write_classes(root, {name: count})
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {root}")
    assert main(["train", tiny.written(tmp_path, text), "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(50)])
def test_a_file_that_is_no_image_stops_a_run_by_name(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "images", {"cat": 20, "dog": 20})
    for name in ("cat", "dog"):
        for file in sorted((tmp_path / "images" / name).iterdir())[::2]:
            file.write_bytes(content)
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    for workers in (0, 1):
        arguments = [tiny.written(tmp_path, text), f"data.workers={workers}", "--run-dir", str(tmp_path / f"{workers}")]
        assert main(["train", *arguments]) == 2
        reported = capsys.readouterr().err.splitlines()[-1]
        assert reported.startswith(f"ofav2: image {tmp_path / 'images'}")
        assert "cannot be decoded" in reported


def test_images_of_one_pixel_are_trained_on(tmp_path: Path) -> None:
    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixel = np.full((1, 1, 3), colour, dtype=np.uint8)
            Image.fromarray(pixel).save(tmp_path / "images" / name / f"{number}.png")
    text = tiny.TWO.replace("name: digits", f"name: imagefolder, root: {tmp_path / 'images'}")
    run = ofav2.train(tiny.written(tmp_path, text), run_dir=tmp_path / "run")
    assert run.record.status == "finished"
