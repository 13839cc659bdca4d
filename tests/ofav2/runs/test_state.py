"""States come back exactly, the newest ones are kept, and what is no state of this run is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ofav2.config.schema import OptimConfig
from ofav2.errors import RunError
from ofav2.runs import checkpoint
from ofav2.runs.state import (
    PhaseState,
    Progress,
    check_state,
    cloned,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save_state,
    set_aside_after,
    set_aside_unlearnt,
    state_names,
)
from ofav2.training.optim import build_optimizer
from tests.notes import Notes
from tests.ofav2 import tiny

OPTIMISERS = ("sgd", "adamw")
SUFFIXES = (".json", ".safetensors")


def small_net(seed: int = 0) -> nn.Module:
    """Weights of every kind of shape, those of convolutions with channels last, and a part that takes no part."""
    torch.manual_seed(seed)
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "idle": nn.Linear(2, 2)})
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def take_steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    """Steps on inputs that are a function of the step's number."""
    for step in range(first, first + count):
        images = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        net["norm"](net["conv"](images)).square().mean().backward()  # type: ignore[index]
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.step()


def optimizer_of(net: nn.Module, name: str) -> torch.optim.Optimizer:
    return build_optimizer(net, OptimConfig(name=name, weight_decay=0.01))  # type: ignore[arg-type]


def progress_at(phase: str = "kernel", step: int = 3, global_step: int = 13, **more: Any) -> Progress:
    return Progress(phase, step, global_step, 1234, **more)


def state(step: int, phase: str = "kernel") -> PhaseState:
    tensors = {"a.weight": torch.full((2, 2), float(step))}
    return PhaseState(progress_at(phase, step, step), tensors, {}, {})


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def files(*steps: int, kind: str = "state") -> list[str]:
    return sorted(f"{kind}-{step:09d}{suffix}" for step in steps for suffix in SUFFIXES)


# Round trips


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_goes_on_from_a_state_to_the_last_bit(name: str, tmp_path: Path) -> None:
    straight = small_net()
    optimizer = optimizer_of(straight, name)
    take_steps(straight, optimizer, 0, 3)
    here = progress_at(best_score=0.1 + 0.2, skipped=2, first_loss=2 / 3, usual_loss=1 / 3)
    save_state(
        tmp_path, PhaseState(here, straight.state_dict(), optimizer_tensors(optimizer), cloned(straight)), keep=1
    )
    best = cloned(straight)
    take_steps(straight, optimizer, 3, 4)

    found = load_newest(tmp_path, "kernel")
    assert found is not None
    assert found.progress == here
    assert tiny.same_bits(found.best, best)
    other = small_net(seed=1)
    again = optimizer_of(other, name)
    other.load_state_dict(dict(found.net))
    restore_optimizer(again, found.optimizer)
    take_steps(other, again, 3, 4)
    assert tiny.same_bits(cloned(other), cloned(straight))
    assert tiny.same_bits(optimizer_tensors(again), optimizer_tensors(optimizer))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_an_optimiser_remembers_is_restored_whole_in_its_parameters_layout(name: str, tmp_path: Path) -> None:
    net = small_net()
    optimizer = optimizer_of(net, name)
    take_steps(net, optimizer, 0, 2)
    tensors = optimizer_tensors(optimizer)
    remembered = {"sgd": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq", "step"]}[name]
    assert sorted({key.partition(".")[2] for key in tensors}) == remembered
    save_state(tmp_path, PhaseState(progress_at(), net.state_dict(), tensors, {}), keep=1)
    found = load_newest(tmp_path, "kernel")
    assert found is not None
    fresh = optimizer_of(net, name)
    restore_optimizer(fresh, found.optimizer)
    for parameter, values in fresh.state.items():
        for key, value in values.items():
            assert torch.equal(value, optimizer.state[parameter][key])
            assert value.dtype == optimizer.state[parameter][key].dtype
            assert value.ndim == 0 or value.stride() == parameter.stride()
    weight = net["conv"].weight  # type: ignore[index]
    assert any(value.stride() != value.contiguous().stride() for value in fresh.state[weight].values()), "channels last"
    idle = [*net["idle"].parameters()]  # type: ignore[index]
    nothing = [value for parameter in idle for value in fresh.state[parameter].values()]
    assert not any(value.any() for value in nothing), "what took no part has nothing to remember"


def test_copies_do_not_follow_training(tmp_path: Path) -> None:
    net = small_net()
    optimizer = optimizer_of(net, "adamw")
    take_steps(net, optimizer, 0, 1)
    tensors, weights = optimizer_tensors(optimizer), cloned(net)
    before = {name: tensor.clone() for name, tensor in (tensors | weights).items()}
    take_steps(net, optimizer, 1, 1)
    assert tiny.same_bits(tensors | weights, before)
    fresh = optimizer_of(net, "adamw")
    restore_optimizer(fresh, tensors)
    take_steps(net, fresh, 2, 1)
    assert tiny.same_bits(tensors | weights, before)


# Which states there are


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_state(tmp_path, state(step), keep=2)
        assert names(tmp_path) == files(*range(max(1, step - 1), step + 1))
    save_state(tmp_path, state(10), keep=1)
    assert names(tmp_path) == files(10)


def test_what_an_interrupted_saving_or_removing_leaves_is_removed_in_time(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
    (tmp_path / "checkpoints" / "state-000000001.json").unlink()
    save_state(tmp_path, state(3), keep=2)
    assert names(tmp_path) == files(2, 3)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    others = [
        "kernel.json",
        "state-1.json",
        "state-000000001.json.bak",
        "state-" + 9 * "\u0661" + ".json",
        "stately.json",
    ]
    (tmp_path / "checkpoints").mkdir()
    for name in others:
        (tmp_path / "checkpoints" / name).touch()
    save_state(tmp_path, state(5), keep=1)
    set_aside_after(tmp_path, 0)
    assert names(tmp_path) == sorted([*others, *files(5, kind="aside")])


def test_states_of_another_phase_are_passed_over_without_a_word(tmp_path: Path) -> None:
    save_state(tmp_path, state(1, "full"), keep=9)
    save_state(tmp_path, state(2, "kernel"), keep=9)
    found = load_newest(tmp_path, "full")
    assert found is not None
    assert found.progress.global_step == 1
    assert load_newest(tmp_path, "level") is None
    assert load_newest(tmp_path / "nowhere", "full") is None


def test_states_past_a_step_are_set_aside_until_the_next_one_is_saved(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_state(tmp_path, state(step), keep=9)
    (tmp_path / "checkpoints" / "state-000000004.json").unlink()
    set_aside_after(tmp_path, 2)
    aside = [name for name in files(3, 4, kind="aside") if name != "aside-000000004.json"]
    assert names(tmp_path) == sorted(files(1, 2) + aside)
    set_aside_after(tmp_path, 2)
    found = load_newest(tmp_path, "kernel")
    assert found is not None
    assert found.progress.global_step == 2
    save_state(tmp_path, state(3), keep=2)
    assert names(tmp_path) == files(2, 3)


# Damage and deceit


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_torn_newest_state_is_named_and_the_one_before_it_taken(suffix: str, tmp_path: Path, notes: Notes) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
    torn = tmp_path / "checkpoints" / f"state-000000002{suffix}"
    content = torn.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 0x10]), content + content):
        torn.write_bytes(damaged)
        found = load_newest(tmp_path, "kernel")
        assert found is not None
        assert found.progress.global_step == 1
        (note,) = notes().splitlines()
        assert torn.name in note
        assert note.endswith("; taking the state before it")
    torn.write_bytes(content)
    whole = load_newest(tmp_path, "kernel")
    assert whole is not None
    assert whole.progress.global_step == 2


@pytest.mark.parametrize(
    "lie",
    [
        {"phase": 3},
        {"phase": None},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": "3"},
        {"step": 2**63},
        {"global_step": None},
        {"metrics_bytes": -1},
        {"metrics_bytes": [1]},
        {"skipped": {}},
        {"best_score": "0.5"},
        {"best_score": True},
        {"usual_loss": [0.5]},
    ],
    ids=repr,
)
def test_a_well_signed_state_without_valid_progress_is_passed_over(
    lie: dict[str, Any], tmp_path: Path, notes: Notes
) -> None:
    save_state(tmp_path, state(1), keep=2)
    facts = dataclasses.asdict(state(2).progress) | lie
    checkpoint.save(tmp_path / "checkpoints" / "state-000000002", {}, facts)
    found = load_newest(tmp_path, "kernel")
    assert found is not None
    assert found.progress.global_step == 1
    assert "has no valid progress" in notes()


def test_a_state_that_lacks_a_fact_is_passed_over(tmp_path: Path, notes: Notes) -> None:
    checkpoint.save(tmp_path / "checkpoints" / "state-000000002", {}, {"phase": "kernel"})
    assert load_newest(tmp_path, "kernel") is None
    assert "has no valid progress" in notes()


def test_a_link_to_elsewhere_is_read_as_a_file_and_checked_like_one(tmp_path: Path) -> None:
    save_state(tmp_path, state(1), keep=2)
    save_state(tmp_path / "other", state(2), keep=2)
    for suffix in SUFFIXES:
        name = f"state-000000002{suffix}"
        (tmp_path / "checkpoints" / name).symlink_to(tmp_path / "other" / "checkpoints" / name)
    set_aside_after(tmp_path, 1)
    save_state(tmp_path, state(2), keep=1)
    assert names(tmp_path / "other") == files(2), "what a link leads to is not ours to remove"


def fitting(net: nn.Module, /, **changes: Any) -> PhaseState:
    given = {"progress": progress_at(best_score=0.5), "net": cloned(net), "optimizer": {}, "best": cloned(net)}
    return PhaseState(**(given | changes))


@pytest.mark.parametrize("group", ["net", "best"])
@pytest.mark.parametrize(
    "change",
    [
        {"conv.weight": torch.zeros(4, 3, 3, 4)},
        {"conv.weight": torch.zeros(4, 3, 3, 3, dtype=torch.float64)},
        {"norm.num_batches_tracked": torch.tensor(1.5)},
        {"conv.weigth": torch.zeros(4, 3, 3, 3)},
        {"conv.weight": None},
    ],
    ids=["shape", "type", "type of a count", "another one", "missing"],
)
def test_weights_that_do_not_fit_are_refused_by_name(group: str, change: dict[str, Tensor | None]) -> None:
    net = small_net()
    wrong = {name: tensor for name, tensor in (cloned(net) | change).items() if tensor is not None}
    with pytest.raises(RunError, match="do not fit the network") as error:
        check_state(fitting(net, **{group: wrong}), net, first_step=10, steps=5)
    assert next(iter(change)) in str(error.value)
    assert "the state at step 13" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_that_fits_passes() -> None:
    net = small_net()
    check_state(fitting(net), net, first_step=10, steps=5)
    check_state(fitting(net), net, first_step=10, steps=3)
    check_state(fitting(net, best={}, progress=progress_at()), net, first_step=10, steps=5)


@pytest.mark.parametrize(
    ("changes", "first_step", "steps"),
    [
        ({}, 11, 5),
        ({}, 10, 2),
        ({"best": {}}, 10, 5),
        ({"progress": progress_at()}, 10, 5),
        ({"progress": progress_at(), "best": {}}, 10, 3),
    ],
    ids=["other first step", "shorter phase", "best without weights", "weights without best", "end without best"],
)
def test_a_state_of_progress_outside_the_phase_is_refused(changes: dict[str, Any], first_step: int, steps: int) -> None:
    net = small_net()
    with pytest.raises(RunError, match="restore"):
        check_state(fitting(net, **changes), net, first_step=first_step, steps=steps)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("sgd", {"99.momentum_buffer": torch.zeros(1)}),
        ("sgd", {"-1.momentum_buffer": torch.zeros(4, 3, 3, 3)}),
        ("sgd", {"x.momentum_buffer": torch.zeros(4, 3, 3, 3)}),
        ("sgd", {"²": torch.zeros(4, 3, 3, 3)}),
        ("sgd", {"0.momentum_buffer": torch.zeros(3)}),
        ("sgd", {"0.momentum_buffer": torch.zeros(())}),
        ("sgd", {"0.__class__": torch.zeros(4, 3, 3, 3)}),
        ("adamw", {"0.momentum_buffer": torch.zeros(4, 3, 3, 3)}),
        ("adamw", {"0.exp_avg": torch.zeros(4, 3, 3, 3)}),
        ("adamw", {"0.step": torch.zeros(4, 3, 3, 3)}),
    ],
)
def test_another_optimisers_or_networks_tensors_are_refused(name: str, tensors: dict[str, Tensor]) -> None:
    optimizer = optimizer_of(small_net(), name)
    before = optimizer_tensors(optimizer)
    with pytest.raises(RunError, match="restore") as error:
        restore_optimizer(optimizer, tensors)
    assert "\n" not in str(error.value)
    assert tiny.same_bits(optimizer_tensors(optimizer), before)


def test_a_state_is_text_and_tensors(tmp_path: Path) -> None:
    """Whoever finds the folder can read where the run stood."""
    save_state(tmp_path, fitting(small_net()), keep=1)
    facts = json.loads((tmp_path / "checkpoints" / "state-000000013.json").read_text())
    assert {key: facts[key] for key in ("phase", "step", "global_step", "best_score")} == {
        "phase": "kernel",
        "step": 3,
        "global_step": 13,
        "best_score": 0.5,
    }


def test_a_state_that_cannot_be_written_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, state(1), keep=1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match="No space left on device"):
        save_state(tmp_path, state(2), keep=1)
    assert names(tmp_path) == files(1)


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([(1.0, 1.0), (1.0, 0.95)], []),
        ([(1.0, 0.91), (1.0, 0.9)], [2]),
        ([(1.0, 0.5), (1.0, 0.55)], [1, 2]),
        ([(1.0, 0.5), (1.0, 0.56), (1.0, 0.54)], [1, 3]),
        ([(None, None), (1.0, None)], []),
    ],
    ids=["learnt too little", "learnt enough", "within the bound", "climbed and fell", "unknown"],
)
def test_of_a_diverged_phase_only_states_that_learnt_and_did_not_climb_are_left(
    losses: list[tuple[float | None, float | None]], kept: list[int], tmp_path: Path
) -> None:
    save_state(tmp_path, state(90, "full"), keep=9)
    for step, (first, usual) in enumerate(losses, start=1):
        progress = progress_at(step=step, global_step=step, first_loss=first, usual_loss=usual)
        save_state(tmp_path, dataclasses.replace(state(step), progress=progress), keep=9)
    (tmp_path / "checkpoints" / "state-000000080.json").write_text("{")
    set_aside_unlearnt(tmp_path, "kernel")
    assert state_names(tmp_path) == ("state-000000090", *(f"state-{step:09d}" for step in reversed(kept)))
