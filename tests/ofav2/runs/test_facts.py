"""What a run records of itself is plain, complete, and the same for as long as the run lasts."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import pytest

from ofav2.config.schema import Config, RunConfig
from ofav2.networks.build import build_supernet
from ofav2.runs import facts as facts_module
from ofav2.runs.facts import describe_run
from tests.ofav2.tiny import data_config, tiny_data, tiny_net


def described(**changes: Any) -> dict[str, Any]:
    config = Config(data=data_config(eval_crop=0.75), run=RunConfig(seed=changes.pop("seed", 3)))
    return describe_run("trial", config, changes.pop("data", tiny_data()), changes.pop("net", tiny_net("ee_dp")))


def test_facts_are_what_json_can_hold() -> None:
    facts = described()
    assert json.loads(json.dumps(facts, allow_nan=False)) is not None


def test_facts_say_what_the_run_is_made_of() -> None:
    facts, net = described(), tiny_net("ee_dp")
    assert (facts["name"], facts["seed"], facts["status"]) == ("trial", 3, "training")
    assert (facts["phases"], facts["wandb_run_id"]) == ([], None)
    assert facts["data"]["images"] == {"train": 40, "val": 23, "test": 17}
    assert facts["data"]["classes"] == [f"class {number}" for number in range(5)]
    assert (facts["data"]["eval_crop"], facts["data"]["channels"]) == (0.75, 3)
    assert facts["data"]["fingerprint"] == "noise 0"
    assert facts["supernet"] == {**asdict(net.architecture), "space": asdict(net.space)}
    assert datetime.now(UTC) - datetime.fromisoformat(facts["created"]) < timedelta(minutes=5)


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = described()["versions"]
    assert found["torch"] == version("torch")
    assert found["numpy"] == version("numpy")
    monkeypatch.setattr(facts_module, "PACKAGES", ("torch", "no-such-package"))
    assert described()["versions"]["no-such-package"] is None


def test_the_supernet_can_be_built_again_from_its_facts() -> None:
    for variant in ("se_b", "ee_dp"):
        net = tiny_net(variant)
        plain = json.loads(json.dumps(described(net=net)["supernet"]))
        again = build_supernet(plain)
        assert again.architecture == net.architecture
        assert again.space == net.space


def test_lasting_facts_survive_json_and_change_with_data_net_and_seed() -> None:
    lasting = facts_module.lasting_facts
    first = lasting(described())
    assert lasting(json.loads(json.dumps(described()))) == first
    assert lasting(described() | {"status": "finished", "created": "later", "phases": [1]}) == first
    others = (
        described(seed=4),
        described(data=replace(tiny_data(), fingerprint="other")),
        described(net=tiny_net("ee_d")),
    )
    assert all(lasting(other) != first for other in others)
