"""Which weights teach a phase, and what the run says of it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import distill
import ofav2
from distill import DistillError, TeacherCandidate
from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import Config, PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.data import ImageData
from ofav2.errors import RunError, UserError
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import PhaseRecord, TeacherRecord
from ofav2.runtime.device import Runtime
from ofav2.tasks.classification import TOP1, Classification
from ofav2.training.external import ExternalTeachers, external_teachers
from ofav2.training.phases import Plan, make_plan
from ofav2.training.setup import Setup, prepare
from ofav2.training.teacher import (
    PhaseTeacher,
    candidates,
    choose_teacher,
    largest_networks,
    prepare_teacher,
    score_order,
    teaching_score,
)
from supernets import Supernet
from tests.ofav2 import tiny
from tests.ofav2.tiny import CPU, MEAN, STD, bits, data_config, same_bits, tiny_data, tiny_evaluator, tiny_net

TINY_TIMM = "test_efficientnet"
DATA = tiny_data()
WEIGHTS = distill.exit_weights("ascending", 5)
LEFT = {"full": 11, "kernel": 12, "depth": 13}
SCORES = {"full": 0.5, "kernel": 0.7, "depth": 0.6}
CANDIDATES = [TeacherCandidate(f"{name}'s largest network", name, score) for name, score in SCORES.items()]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What three phases left: each a supernet of its own."""
    for name, seed in LEFT.items():
        checkpoint.save(folder.checkpoint_path(tmp_path, name), tiny_net(seed=seed).state_dict(), {"name": name})
    return tmp_path


def plan_ending_with(policy: str, net: Supernet) -> Plan:
    """What left the checkpoints, and a phase that is taught by this policy."""
    unlocked = {"full": {}, "kernel": {"kernel": (3, 5)}, "depth": {"depth": (2, 3)}, "last": {"expand": (2, 3)}}
    phases = {name: PhaseConfig(1, 0.1, UnlockConfig(**choices)) for name, choices in unlocked.items()}
    return make_plan(phases | {"last": replace(phases["last"], teacher=policy)}, TeacherConfig(), net.space, 1)


def choose(
    policy: str,
    run_folder: Path,
    net: Supernet,
    *,
    runtime: Runtime = CPU,
    precision: Any = None,
    external: Mapping[str, nn.Module] = MappingProxyType({}),
    left: Collection[str] = tuple(LEFT),
) -> PhaseTeacher:
    setup = Setup(
        config=Config(data=data_config(), teacher=TeacherConfig(precision=precision)),
        data=DATA,
        net=net,
        initial=None,
        plan=plan_ending_with(policy, net),
        external=ExternalTeachers(external, None),
        weights_sha256=None,
        runtime=runtime,
        task=Classification(5),
        evaluator=tiny_evaluator(DATA, runtime=runtime),
    )
    *before, phase = setup.plan.phases
    finished = [
        PhaseRecord(past.name, past.evaluated, 1, 1, TeacherRecord("none"), SCORES[past.name], None, 0, "0" * 64)
        for past in before
        if past.name in left
    ]
    assert candidates(finished) == [one for one in CANDIDATES if one.phase in left]
    return choose_teacher(setup, phase, finished, run_folder)


@pytest.mark.parametrize(("policy", "chosen"), [("fixed", "full"), ("progressive", "depth"), ("best", "kernel")])
def test_the_weights_of_the_chosen_phase_teach(policy: str, chosen: str, run_folder: Path) -> None:
    net = tiny_net(seed=99)
    before = bits(net)
    phase_teacher = choose(policy, run_folder, net)
    candidate = next(candidate for candidate in CANDIDATES if candidate.phase == chosen)
    found = phase_teacher.record
    assert {"policy": found.policy, "name": found.name, "phase": found.phase, "score": found.score} == {
        "policy": policy,
        "name": candidate.name,
        "phase": chosen,
        "score": candidate.score,
    }
    assert found.reason == distill.choose(policy, CANDIDATES, score_order(Classification(5))).reason

    assert phase_teacher.teacher is not None
    for side in (16, 20):
        images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
        target = phase_teacher.teacher(images)
        torch.testing.assert_close(
            target.logits, ensemble_with_statistics_at(side, LEFT[chosen], images), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(target.probabilities, target.logits.softmax(1))
    assert same_bits(bits(net), before), "the supernet goes on as it was"


def ensemble_with_statistics_at(side: int, seed: int, images: torch.Tensor) -> torch.Tensor:
    source = tiny_net(seed=seed).eval()
    largest = replace(source.space.largest(), resolution=side)
    with torch.no_grad():
        exits = tiny_evaluator(DATA).calibrated(source, largest, "all")(images)
    return torch.stack([float(b) * logits for b, logits in zip(WEIGHTS.ensemble, exits, strict=True)]).sum(0)


def test_statistics_of_another_resolution_would_teach_something_else() -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own, other = (ensemble_with_statistics_at(side, LEFT["full"], images) for side in (16, 20))
    assert (own - other).abs().max() > 0.05 * own.std()


def test_a_teachers_score_is_the_mean_over_resolutions() -> None:
    net, evaluator = tiny_net(seed=5), tiny_evaluator(DATA)
    networks = largest_networks(net, evaluator)
    alone = [evaluator.ensemble_score(networks[side], WEIGHTS.ensemble, side, DATA.val) for side in (16, 20)]
    assert sorted(networks) == [16, 20]
    assert teaching_score(networks, WEIGHTS.ensemble, evaluator) == sum(alone) / 2


def test_a_teacher_does_not_move_with_the_supernet(run_folder: Path) -> None:
    net = tiny_net(seed=LEFT["full"])
    teacher = choose("fixed", run_folder, net).teacher
    assert teacher is not None
    images = torch.ones(2, 3, 16, 16)
    before = teacher(images).logits.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher(images).logits, before)


@pytest.mark.parametrize("runs", ["float32", "bfloat16"])
def test_a_teachers_precision_is_its_own(runs: str, run_folder: Path) -> None:
    """Its target is float32, near that of float32 arithmetic; a student after it is the run's."""
    net, images = tiny_net(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    runtime = replace(CPU, precision=runs)
    plain = choose("fixed", run_folder, net).teacher
    wide, narrow, own = (
        choose("fixed", run_folder, net, runtime=runtime, precision=precision).teacher
        for precision in ("float32", "bfloat16", None)
    )
    assert plain is not None
    assert wide is not None
    assert narrow is not None
    assert own is not None
    expected = plain(images)
    with runtime.autocast():
        targets = [teacher(images) for teacher in (wide, narrow, own)]
        student = net(images, net.space.largest())
    assert all(target.logits.dtype == target.probabilities.dtype == torch.float32 for target in targets)
    assert torch.equal(targets[0].logits, expected.logits)
    assert not torch.equal(targets[1].logits, expected.logits)
    torch.testing.assert_close(targets[1].logits, expected.logits, rtol=0.05, atol=0.05 * float(expected.logits.std()))
    assert torch.equal(targets[2].logits, targets[runs == "bfloat16"].logits)
    assert student.dtype == getattr(torch, runs)


@pytest.mark.parametrize(("objective", "first"), [("joint", (1, 2, 3, 4, 5)), ("distill", (5,))])
def test_exits_that_nothing_has_trained_teach_nothing(objective: str, first: tuple[int, ...], tmp_path: Path) -> None:
    text = tiny.SIX.replace(
        "full: {epochs: 0.02, lr: 0.003}", f"full: {{epochs: 0.02, lr: 0.003, {OBJECTIVE[objective]}}}"
    )
    text = text.replace("height: [1, 2, 3, 4, 5]", "height: [2, 5]")
    setup = prepare(recipe.load(tiny.written(tmp_path, text), ["teacher.exit_weights=ascending"]))
    whole = distill.exit_weights("ascending", 5).ensemble
    trained = dict.fromkeys(("full", "kernel", "level"), first) | dict.fromkeys(("height", "depth"), (*first, 2, 5))
    for phase in setup.plan.phases[:-1]:
        weights = phase.weights.trained.ensemble
        assert sum(weights) == 1
        kept = [exit_ for exit_, weight in enumerate(weights, 1) if weight]
        assert kept == sorted(set(trained[phase.name]))
        assert [weights[exit_ - 1] / whole[exit_ - 1] for exit_ in kept] == [weights[-1] / whole[-1]] * len(kept)
    if objective == "joint":
        assert setup.plan.phases[0].weights.trained.ensemble == whole


def test_an_ensemble_of_untrained_exits_alone_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    text = tiny.SIX.replace(
        "full: {epochs: 0.02, lr: 0.003}", f"full: {{epochs: 0.02, lr: 0.003, {OBJECTIVE['distill']}}}"
    )
    with pytest.raises(DistillError, match=r"are 0 for all exits that are trained \(5\)"):
        ofav2.train(tiny.written(tmp_path, text), ["teacher.exit_weights=[1,0,0,0,0]"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


OBJECTIVE = {"joint": "objective: joint", "distill": "objective: distill, teacher: none"}


def test_one_exit_is_plain_distillation(tmp_path: Path) -> None:
    net = tiny_net("se_b", seed=4)
    checkpoint.save(folder.checkpoint_path(tmp_path, "full"), net.state_dict(), {})
    phase_teacher = choose("fixed", tmp_path, net, left=["full"])
    assert phase_teacher.teacher is not None
    images = torch.ones(2, 3, 16, 16)
    with torch.no_grad():
        network = tiny_evaluator(DATA).calibrated(net, replace(net.space.largest(), resolution=16), "last")
        expected = network(images)
    torch.testing.assert_close(phase_teacher.teacher(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_none_teaches_nothing_and_says_so(tmp_path: Path) -> None:
    assert choose("none", tmp_path, tiny_net()) == PhaseTeacher(None, TeacherRecord("none"))


def test_a_checkpoint_that_is_gone_is_named(run_folder: Path) -> None:
    (run_folder / "checkpoints" / "kernel.safetensors").unlink()
    with pytest.raises(RunError, match=r"kernel\.safetensors is missing"):
        choose("best", run_folder, tiny_net())


def test_a_teachers_form_computes_what_the_network_does_and_leaves_it() -> None:
    net = tiny_net(seed=2).eval()
    largest = net.extract(net.space.largest(), exits="all")
    kinds = [type(layer) for layer in largest.modules()]
    images = torch.rand(2, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        form = prepare_teacher(largest, CPU)
        for ours, theirs in zip(form(images), largest(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [type(layer) for layer in largest.modules()] == kinds


# External teachers


def externals(plan: Plan, teacher: TeacherConfig, data: ImageData, resolutions: tuple[int, ...]) -> Any:
    config = Config(data=data_config(resolutions=resolutions), teacher=teacher)
    return external_teachers(plan, config, data, Classification(len(data.classes)), CPU).networks


@pytest.fixture
def timm_file(tmp_path: Path) -> str:
    network = timm.create_model(TINY_TIMM, num_classes=5)
    path = tmp_path / "teacher.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


def plan_with_teachers(*policies: str) -> Plan:
    net = tiny_net()
    phase = plan_ending_with("none", net).phases[-1]
    return Plan(tuple(replace(phase, teacher=policy) for policy in policies), (), 1)


def test_a_timm_teacher_teaches_with_its_own_logits(timm_file: str, tmp_path: Path) -> None:
    policy = f"timm:{TINY_TIMM}"
    config = TeacherConfig(checkpoint=timm_file, mean=MEAN, std=STD)
    external = externals(plan_with_teachers(policy), config, DATA, (16, 20))
    evaluator, net = tiny_evaluator(DATA), tiny_net()
    phase_teacher = choose(policy, tmp_path, net, external=external, left=[])
    images = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = external[policy](images)
    assert phase_teacher.teacher is not None
    torch.testing.assert_close(phase_teacher.teacher(images).logits, expected)
    scores = [evaluator.exit_scores(external[policy], side, DATA.val)[0] for side in (16, 20)]
    score = sum(scores) / 2
    reason = phase_teacher.record.reason
    assert phase_teacher.record == TeacherRecord(policy, name=policy, score=score, reason=reason)
    assert TOP1.show(score) in (reason or "")


def test_a_timm_teacher_is_measured_and_teaches_with_its_own_normalisation(timm_file: str, tmp_path: Path) -> None:
    policy = f"timm:{TINY_TIMM}"
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    given = externals(plan_with_teachers(policy), TeacherConfig(checkpoint=timm_file, mean=mean, std=std), DATA, (20,))
    # The same network on images that are normalised so from the start.
    alike = replace(DATA, mean=mean, std=std)
    plain = externals(plan_with_teachers(policy), TeacherConfig(checkpoint=timm_file, mean=mean, std=std), alike, (20,))
    pixels = DATA.val.images.read(0)[None].float()
    with torch.no_grad():
        torch.testing.assert_close(
            given[policy](DATA.normalise(pixels)), plain[policy](alike.normalise(pixels)), rtol=1e-4, atol=1e-4
        )
    scores = [
        tiny_evaluator(data).exit_scores(found[policy], 20, data.val) for data, found in ((DATA, given), (alike, plain))
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"^teacher\.mean \(null\): a teacher\.checkpoint does not say"),
        ({"mean": MEAN}, r"^teacher\.std \(null\): a teacher\.checkpoint does not say"),
        ({"mean": MEAN, "std": (0.5,)}, r"^teacher\.std \(1 numbers\): must have as many as teacher\.mean, 3"),
        ({"checkpoint": None, "mean": MEAN, "std": STD}, r"are those of teacher\.checkpoint \(null\): leave them out"),
    ],
)
def test_a_teachers_file_needs_its_normalisation(timm_file: str, changes: dict[str, Any], message: str) -> None:
    config = replace(TeacherConfig(checkpoint=timm_file), **changes)
    with pytest.raises(UserError, match=message):
        externals(plan_with_teachers(f"timm:{TINY_TIMM}"), config, DATA, (16,))


def test_weights_for_pictures_do_not_teach_patches(timm_file: str) -> None:
    """Their images are in 0..1, and a band's values are as they are stored."""
    config = TeacherConfig(checkpoint=timm_file, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="are for pictures in"):
        externals(plan_with_teachers(f"timm:{TINY_TIMM}"), config, replace(DATA, white=1.0), (16,))


def test_external_teachers_are_built_once_and_only_where_a_phase_names_one(timm_file: str) -> None:
    policy = f"timm:{TINY_TIMM}"
    config = TeacherConfig(checkpoint=timm_file, mean=MEAN, std=STD)
    built = externals(plan_with_teachers(policy, "best", policy, "none"), config, DATA, (16,))
    assert list(built) == [policy]
    assert externals(plan_with_teachers("best", "none"), TeacherConfig(), DATA, (16,)) == {}
    with pytest.raises(UserError, match=r"teacher\.checkpoint \(.*\) is of a teacher from timm, and no phase has one"):
        externals(plan_with_teachers("best", "none"), config, DATA, (16,))


def test_the_teachers_file_is_recorded_and_another_one_is_a_change(tmp_path: Path) -> None:
    def teacher(seed: int) -> None:
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "teacher.safetensors")

    with torch.random.fork_rng():
        teacher(0)
    sha256 = files.sha256(tmp_path / "teacher.safetensors")
    settings = [
        "data.resolutions=[32]",
        "phases.kernel.teacher=timm:test_resnet",
        f"teacher.checkpoint={tmp_path / 'teacher.safetensors'}",
        "teacher.mean=[0.5,0.5,0.5]",
        "teacher.std=[0.5,0.5,0.5]",
    ]
    run = ofav2.train(tiny.written(tmp_path, tiny.TWO), settings, tmp_path / "run")
    assert run.record.teacher_sha256 == sha256
    assert [phase.teacher.sha256 for phase in run.record.phases] == [None, sha256]
    with torch.random.fork_rng():
        teacher(1)
    with pytest.raises(RunError, match=r"teacher\.checkpoint\.sha256 was .* with --allow-change teacher\.checkpoint"):
        ofav2.resume(run.folder)
    ofav2.resume(run.folder, allow=["teacher.checkpoint"])


def test_a_teacher_of_other_classes_is_refused(timm_file: str) -> None:
    config = TeacherConfig(checkpoint=timm_file, mean=MEAN, std=STD)
    with pytest.raises(distill.DistillError, match="5 classes"):
        externals(plan_with_teachers(f"timm:{TINY_TIMM}"), config, tiny_data(classes=6), (16,))


def test_a_teacher_that_cannot_take_the_images_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Picky(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[-1] != 20, "Input height (20) doesn't match model (16)."
            return images.mean((2, 3))

    monkeypatch.setattr(distill, "external_teacher", lambda *_, **__: Picky())
    plan = plan_with_teachers("timm:picky")
    assert list(externals(plan, TeacherConfig(), DATA, (16,))) == ["timm:picky"]
    with pytest.raises(UserError, match=r"^teacher \(timm:picky\) can't look at images of 20 pixels") as caught:
        externals(plan, TeacherConfig(), DATA, (16, 20, 24))
    assert len(str(caught.value).splitlines()) == 1


def test_external_weights_are_one_exit() -> None:
    assert distill.exit_weights("uniform", 1).ensemble == (Fraction(1),)
