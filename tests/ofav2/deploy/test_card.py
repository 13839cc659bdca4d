"""The model card: front matter that the Hub reads, whatever names a run brings along."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from ofav2.data.views import normalise
from ofav2.deploy.artifact import EpochSearch, FinetuningRecord, SubnetRecord, Validation
from ofav2.deploy.card import model_card
from ofav2.runs.records import SplitSizes
from supernets.cost import Cost
from tests.ofav2 import tiny
from tests.ofav2.deploy.written import described

NET = tiny.tiny_net("ee_dp")
RECORD = replace(
    described(NET, NET.space.largest(), (2, 5)),
    cost=Cost(1234567, 89012345, 4096),
    scores={"val": {2: 0.7, 5: 0.8}, "test": {2: 0.71, 5: 0.8123456789}},
)


def named(run: str) -> SubnetRecord:
    return replace(RECORD, provenance=replace(RECORD.provenance, run=run))


def test_the_hub_reads_results_from_the_model_card() -> None:
    card = ModelCard(model_card(RECORD))
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"Top-1, exit 2": 0.71, "Top-1, exit 5": 0.8123456789}
    assert card.data.library_name == "ofav2"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["digits"]
    assert card.data.metrics == ["accuracy"]
    assert card.data.license == "other"
    assert {"ee_dp", "once-for-all"} <= set(card.data.tags)
    assert "1,234,567" in card.text
    assert "89,012,345" in card.text


def test_classes_are_listed_from_the_worst_and_a_class_that_is_never_found_shows() -> None:
    text = model_card(RECORD)
    assert "Of 50 test images, 72.00 % are classified rightly; the mean of the classes' accuracies is 72.00 %." in text
    rows = [line for line in text.splitlines() if line.startswith("| `class ")]
    assert rows[:2] == [
        "| `class 0` | 10 | 0.00 % | `class 1` (10) |",
        "| `class 1` | 10 | 90.00 % | `class 0` (1) |",
    ]
    assert rows[5:7] == ["| `class 0` | 0 | 10 | 0 | 0 | 0 |", "| `class 1` | 1 | 9 | 0 | 0 | 0 |"]
    assert "By class" not in model_card(replace(RECORD, by_class=None))


def test_scores_of_images_that_networks_are_chosen_on_are_said_to_flatter() -> None:
    same = replace(RECORD, extraction=replace(RECORD.extraction, validation_is_test=True))
    assert "so test scores flatter" in model_card(same)
    assert "flatter" not in model_card(RECORD)


def test_a_fine_tuned_network_says_so_and_shows_what_was_measured_in_the_end() -> None:
    before = Validation(0, {2: 0.5, 5: 0.6}, 0.6)
    step = FinetuningRecord(
        source_sha256="ef" * 32,
        data="mine | yours",
        data_fingerprint="01" * 32,
        images=SplitSizes(20, 10, 10),
        new_classifiers=False,
        epochs=7,
        search=EpochSearch((), before, (before,)),
        final=(),
        test_before=None,
        test={2: 0.75, 5: 0.875},
        versions={},
        recipe="{}",
    )
    tuned = replace(RECORD, data="mine", finetuning=(step,), scores={"test": step.test}, extraction=None)
    card = ModelCard(model_card(tuned))
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"Top-1, exit 2": 0.75, "Top-1, exit 5": 0.875}
    assert card.data.datasets == ["mine"]
    assert f"`{'ef' * 32}` on `mine   yours`" in card.text
    assert "| 5 | 87.50 % |" in card.text
    assert "recalibrat" not in card.text


HOSTILE = (
    "---\nlicense: mit\n---",
    'a": {b: c}',
    "x: y # z",
    "!!python/object/apply:os.system [ls]",
    "é 日本 😀 \u2028 \x85 \x00 \ud800",
    "`code` | <script>alert(1)</script>",
)


CODE = "x\n```\n\n```python\nimport os; os.system('ls')\n```\n# x\n| a | b |"


@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_the_cards_code_prepares_patches_as_training_does(nodata: float | None) -> None:
    given = replace(RECORD.input, bands=("a", "b", "c"), white=10000.0, nodata=nodata)
    code = python_of(model_card(replace(RECORD, input=given)))[0].partition("\n\nimport")[0]
    stored = torch.linspace(1, 9000, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    stored[0, 1, 2, 3], stored[1, 0, 4, 5], stored[1, 2, 6, 7] = -9999.0, math.nan, math.inf
    lines = [line for line in code.splitlines() if not line.startswith("images = torch.rand")]
    found: dict[str, Any] = {"images": stored}
    exec("\n".join(lines), found)
    expected = normalise(stored, given.mean, given.std, white=given.white, nodata=nodata)
    torch.testing.assert_close(found["images"], expected)
    assert (found["images"][0, :, 2, 3] == 0).all() == (nodata is not None)


def test_no_text_of_a_record_becomes_code_or_a_line_of_its_own() -> None:
    metric = replace(RECORD.metric, name=CODE, unit=CODE)
    origin = replace(RECORD.provenance, phase=CODE, data_fingerprint=CODE, versions={"torch": CODE, "ofav2": CODE})
    hostile = replace(RECORD, task=CODE, metric=metric, data=CODE, provenance=origin)
    text, plain = model_card(hostile), model_card(RECORD)
    assert python_of(text) == python_of(plain)
    assert len(text.splitlines()) <= len(plain.splitlines())
    yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))


def python_of(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_never_leave_their_place_in_the_model_card(name: str) -> None:
    text = model_card(named(name))
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    fields, plain = yaml.safe_load(head), yaml.safe_load(model_card(named("x")).split("---")[1])
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    assert fields["model-index"][0]["name"] == f"{shown}: {RECORD.name}"
    fields["model-index"][0]["name"] = plain["model-index"][0]["name"]
    assert fields == plain
    assert len(body.splitlines()) == len(model_card(named("x")).split("\n---\n", 1)[1].splitlines())
    assert "\n# <script>" not in body
    assert body.encode("utf-8")
