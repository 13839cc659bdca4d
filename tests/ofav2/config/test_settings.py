"""Every setting is described, found by its key, and explained where a recipe is printed."""

import dataclasses
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml

from ofav2.config import recipe
from ofav2.config.schema import Config, TuningConfig
from ofav2.config.settings import comment, find_settings, settings
from ofav2.errors import UserError
from tests import settings_page


def keys(section: type, key: str = "") -> list[str]:
    """Plain reference: walk the schema."""
    found = []
    for name, kind in get_type_hints(section).items():
        inner = get_args(kind)[1] if get_origin(kind) is dict else kind
        full = f"{key}{name}." + ("NAME." if inner is not kind else "")
        found += keys(inner, full) if dataclasses.is_dataclass(inner) else [f"{key}{name}"]
    return found


def test_every_key_has_a_type_and_a_sentence() -> None:
    assert sorted(setting.key for setting in settings()) == sorted({*keys(Config), *keys(TuningConfig)})
    assert all(setting.kind and setting.sentence.endswith(".") for setting in settings())


def test_a_setting_tells_type_rule_default_and_meaning() -> None:
    (found,) = find_settings("optim.grad_clip")
    assert (found.kind, found.rule, found.default) == ("number", "0 or more", "0.0")
    assert found.sentence == "Largest allowed norm of the gradient; 0 turns clipping off."
    (seed,) = find_settings("run.seed")  # Of a base class of the section.
    assert seed.sentence.startswith("Seed from which")


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("phases.full.epochs", ["phases.NAME.epochs"]),
        ("phases.NAME.epochs", ["phases.NAME.epochs"]),
        ("epochs", ["phases.NAME.epochs", "finetune.epochs"]),
        ("optim.betas", ["optim.betas"]),
        (
            "phases.full.unlock",
            [f"phases.NAME.unlock.{name}" for name in ("kernel", "level", "height", "depth", "expand")],
        ),
    ],
)
def test_settings_are_found_by_key_section_and_name(key: str, found: list[str]) -> None:
    assert [setting.key for setting in find_settings(key)] == found


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("data.batchsize", "data.batch_size"),
        ("cache_gb", "data.cache_gib"),
        ("phases.full.epoch", "phases.NAME.epochs"),
        ("\x1b[2J", "`ofav2 settings`"),
    ],
)
def test_an_unknown_key_is_refused_with_a_near_one(key: str, near: str) -> None:
    with pytest.raises(UserError) as refused:
        find_settings(key)
    assert near in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", recipe.names())
def test_comments_change_no_value(name: str) -> None:
    text = recipe.dump(recipe.load(name))
    assert yaml.safe_load(comment(text)) == yaml.safe_load(text)


def test_comments_explain_each_setting_once() -> None:
    text = comment(recipe.dump(recipe.load("digits")))
    prose = " ".join(line.lstrip(" #") for line in text.splitlines() if line.lstrip().startswith("#"))
    for setting in settings():
        if not setting.key.startswith("finetune."):
            assert setting.sentence in prose, setting.key
    assert prose.count("Peak learning rate.") == 1


def test_the_page_is_that_of_the_schema() -> None:
    page = settings_page.PAGE.read_text(encoding="utf-8")
    assert page == settings_page.render(), "settings changed: run `python -m tests.settings_page`"
