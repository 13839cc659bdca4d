"""Several processes compute what one does: the same gradients, the same scores, and they begin and end together.

Each test forks its processes, which talk over gloo; `tests/ofav2/test_torchrun.py` has whole runs.
"""

import copy
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import distill
from ofav2 import data
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.config.schema import Config, OptimConfig, RunConfig
from ofav2.data import Batch
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import nested_groups
from ofav2.rng import Stream
from ofav2.runs.records import RunRecord
from ofav2.runtime import processes as processes_module
from ofav2.runtime.device import Runtime, open_runtime, seed_torch
from ofav2.runtime.processes import SINGLE_PROCESS, Processes, own_rank, process_group
from ofav2.runtime.share import Share
from ofav2.runtime.signals import Lost
from ofav2.tasks.classification import Classification
from ofav2.tasks.reconstruction import Reconstruction
from ofav2.tasks.regression import Regression
from ofav2.tasks.segmentation import Segmentation
from ofav2.training import setup as prepare
from ofav2.training.loop import posed
from ofav2.training.objectives import Distill, InPlace, Joint, Losses, Objective, all_exits, as_teacher
from ofav2.training.optim import make_updates
from ofav2.training.phases import Phase
from ofav2.training.step import Guard, loss_weight, step_gradients, train_steps
from supernets import Subnet, Supernet
from tests.ofav2 import tiny
from tests.ofav2.crew import PATIENCE, Ended, crew, run_apart, run_crew
from tests.ofav2.tiny import bits, same_bits, tiny_data, tiny_evaluator, tiny_net

CPU = torch.device("cpu")
B = tuple(Fraction(i, 15) for i in (1, 2, 3, 4, 5))


def on(processes: Processes) -> Runtime:
    return Runtime(CPU, "float32", processes)


def part_of(tensor: Tensor, processes: Processes) -> Tensor:
    return tensor.chunk(processes.count)[processes.rank]


# Gradients


def twelve_images() -> tuple[Tensor, Tensor]:
    (batch,) = tiny.random_batches([16], count=12)
    return batch.images.double() / 255 - 0.4, batch.targets


def three_subnets(net: Supernet) -> tuple[Subnet, ...]:
    uniform = net.space.uniform
    return (
        uniform(resolution=16, height=3),
        uniform(resolution=16, depth=1, kernel=3, height=2),
        uniform(resolution=16, height=1),
    )


def objective_of(name: str, net: Supernet) -> Objective:
    task = Classification(5, 0.1)
    if name == "joint":
        return Joint(task, tiny.given(net, net.space.uniform(depth=1)), B, all_exits(net))
    teacher = tiny_net(seed=9, dtype=torch.float64).eval().extract(net.space.uniform(resolution=16), exits="all")
    teach = as_teacher(teacher, B)
    if name == "in place":
        weights = {1: Fraction(1, 2), 5: Fraction(1, 2)}
        bodies = tiny.given(net, net.space.uniform(resolution=16), net.space.uniform(resolution=16, depth=1))
        return InPlace(task, bodies, net, weights, weights, distill.soft_cross_entropy, 0.6)
    return Distill(task, tiny.given(net, *three_subnets(net)), net, teach, distill.soft_cross_entropy, 0.6)


def gradients(
    net: Supernet, objective: Objective, images: Tensor, labels: Tensor, processes: Processes
) -> tuple[dict[str, float], dict[str, Tensor]]:
    net.zero_grad(set_to_none=True)
    metrics = step_gradients(list(net.parameters()), objective.losses(images, labels, 0), on(processes))
    return metrics, {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["joint", "students", "in place"])
def test_the_gradients_of_parts_are_those_of_the_whole_batch(name: str) -> None:
    net = tiny_net(dtype=torch.float64).eval()
    objective, (images, labels) = objective_of(name, net), twelve_images()
    metrics, expected = gradients(net, objective, images, labels, SINGLE_PROCESS)
    assert 50 < len(expected) < len(list(net.parameters())), "some took no part"

    def job(processes: Processes) -> Any:
        return gradients(net, objective, part_of(images, processes), part_of(labels, processes), processes)

    found = crew(3, job)
    for own_metrics, own in found:
        assert own.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(own[key], tensor, rtol=1e-9, atol=1e-12)
        assert own_metrics == pytest.approx(metrics, rel=1e-9)
    assert all(same_bits(own, found[0][1]) for _, own in found)
    assert all(own_metrics == found[0][0] for own_metrics, _ in found)


def test_batch_norm_in_training_sees_its_own_part_and_nothing_else_differs() -> None:
    """The documented difference: the mean of what one process finds for each part, each with its own statistics."""
    net = tiny_net(dtype=torch.float64)
    objective, (images, labels) = objective_of("students", net), twelve_images()

    def alone(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        other = copy.deepcopy(net)
        return gradients(other, objective_of("students", other), images, labels, SINGLE_PROCESS)[1]

    whole = alone(images, labels)
    halves = [alone(*half) for half in zip(images.chunk(2), labels.chunk(2), strict=True)]

    def job(processes: Processes) -> Any:
        return gradients(net, objective, part_of(images, processes), part_of(labels, processes), processes)[1]

    found, _ = crew(2, job)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, (halves[0][key] + halves[1][key]) / 2, rtol=1e-9, atol=1e-12)
    assert any((found[key] - whole[key]).norm() > 0.01 * whole[key].norm() for key in whole)


@pytest.mark.parametrize("task", [Segmentation(("a", "b", "c")), Regression(("x", "y", "z"))], ids=["codes", "numbers"])
@pytest.mark.parametrize("count", [2, 3])
def test_pixels_weigh_the_same_in_whichever_process_they_are(task: Segmentation | Regression, count: int) -> None:
    """Of the first images no pixel counts, and of others some: processes have other numbers of pixels that count."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(12, 2, 6, 6, dtype=torch.float64, generator=rng)
    ignored = torch.rand(12, 6, 6, generator=rng) < torch.linspace(1, 0.2, 12)[:, None, None]
    ignored[:6] = True
    if isinstance(task, Segmentation):
        target = torch.randint(3, (12, 6, 6), generator=rng).masked_fill(ignored, -100)
    else:
        values = torch.randn(12, 3, 6, 6, dtype=torch.float64, generator=rng)
        target = values.masked_fill(ignored[:, None], torch.nan)
    net = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    teach = as_teacher(nn.Conv2d(2, 3, 3, dtype=torch.float64).eval(), (Fraction(1),))
    target = target[..., 1:-1, 1:-1]

    def student_losses(images: Tensor, target: Tensor) -> Iterator[Losses]:
        wanted = teach(images).at(task.counted(target))
        yield distill.student_loss(
            net(images), task.loss(net(images), target), target=wanted, distance=distill.mse, kd_ratio=0.5
        )

    def step(images: Tensor, target: Tensor, processes: Processes) -> tuple[dict[str, float], Tensor]:
        net.zero_grad(set_to_none=True)
        weight = loss_weight(task.counted(target), on(processes))
        metrics = step_gradients(list(net.parameters()), student_losses(images, target), on(processes), weight)
        assert net.weight.grad is not None
        return metrics, net.weight.grad.clone()

    metrics, expected = step(images, target, SINGLE_PROCESS)
    for own, found in crew(count, lambda p: step(part_of(images, p), part_of(target, p), p)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert own == pytest.approx(metrics, rel=1e-9)
    nothing = torch.full_like(target, -100 if isinstance(task, Segmentation) else torch.nan)
    for own, found in crew(count, lambda p: step(part_of(images, p), part_of(nothing, p), p)):
        assert own["loss"] == 0
        assert not found.any()


def test_processes_hide_other_parts_of_their_images_and_the_first_those_of_one_alone() -> None:
    (batch,) = tiny.random_batches([16], count=8)

    def shown(processes: Processes) -> Tensor:
        task = Reconstruction(("red", "green", "blue"))
        given = [batch._replace(targets=torch.zeros(8, 0, 16, 16))]
        (found,) = posed(given, tiny_data(), task, Stream(1, "full"), on(processes), 5)
        return found.images

    first, second, third = (shown(Processes(rank, 3, rank)) for rank in range(3))
    assert torch.equal(first, shown(SINGLE_PROCESS))
    assert not any(torch.equal(*pair) for pair in ((first, second), (first, third), (second, third)))


def test_buckets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(3,), (), (2, 3, 4, 4), (70,), (5, 2), (1,), (0,)]
    wide = [[torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes] for _ in range(3)]
    expected = [sum(row) / 3 for row in zip(*wide, strict=True)]
    monkeypatch.setattr(processes_module, "BUCKET_BYTES", 300)
    assert len(list(processes_module._buckets(wide[0]))) > 2, "some hold several tensors, one is larger than a bucket"

    def job(processes: Processes) -> Any:
        own = [tensor.clone() for tensor in wide[processes.rank]]
        own[2] = own[2].contiguous(memory_format=torch.channels_last)
        counted = [
            *(tensor.clone() for tensor in own),
            torch.tensor(7 + processes.rank),
            torch.ones(2) * processes.rank,
        ]
        processes.average(own)
        processes.copy_first(counted)
        return own, counted

    for averaged, copied in crew(3, job):
        for tensor, mean in zip(averaged, expected, strict=True):
            torch.testing.assert_close(tensor, mean, rtol=1e-14, atol=1e-14)
        assert all(map(torch.equal, copied, [*wide[0], torch.tensor(7), torch.zeros(2)]))


def test_processes_that_train_different_parameters_are_stopped() -> None:
    """A bug, which must not go on as wrong gradients."""
    net = tiny_net(dtype=torch.float64).eval()
    images, labels = twelve_images()

    def job(processes: Processes) -> Any:
        draw = tiny.given(net, net.space.uniform(resolution=16, height=1 + processes.rank))
        objective = Distill(Classification(5), draw, net, None, distill.mse, 1.0)
        step_gradients(list(net.parameters()), objective.losses(images, labels, 0), on(processes))

    assert all(isinstance(member.error, AssertionError) for member in run_crew(2, job))


# The loop


def floats(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.4


def elastic_phase(net: Supernet, **more: Any) -> Phase:
    return tiny.plan_phases(net, tiny.two_phases(subnets=2, epochs=3, **more))["elastic"]


def steps_of(net: Supernet, objective: Objective, processes: Processes, phase: Phase) -> Iterator[Any]:
    net.set_dropout(phase.config.dropout)
    batches = [
        Batch(part_of(floats(batch.images), processes), part_of(batch.targets, processes))
        for batch in tiny.random_batches([16, 20, 16], count=8)
    ]
    return train_steps(
        net,
        batches,
        objective,
        make_updates(net, OptimConfig(grad_clip=1.0), steps=phase.steps, warmup_steps=0, peak=phase.config.lr),
        guard=Guard(0.0),
        stream=Stream(5, phase.name),
        runtime=on(processes),
    )


def test_processes_keep_the_same_weights_to_the_last_bit() -> None:
    def job(processes: Processes) -> Any:
        net = tiny_net()
        phase = elastic_phase(net, dropout=0.3)
        objective = Distill(Classification(5, 0.1), tiny.drawn_in(phase), net, None, distill.mse, 1.0)
        steps = list(steps_of(net, objective, processes, phase))
        told = [{**step.metrics, "images_per_second": 0} for step in steps]
        return {name: p.detach() for name, p in net.named_parameters()}, told

    (first, told), (second, also_told) = crew(2, job)
    assert same_bits(first, second)
    assert told == also_told
    assert not same_bits(first, {name: p.detach() for name, p in tiny_net().named_parameters()})


def test_a_batch_that_one_process_cannot_use_is_skipped_by_all() -> None:
    def job(processes: Processes) -> Any:
        net = tiny_net()
        factors = iter([1.0, float("nan") if processes.rank else 1.0, 1.0])

        def bad(images: Tensor, target: Tensor, step: int) -> Iterator[Losses]:
            yield {"loss": net(images, net.space.smallest()).square().mean() * next(factors)}

        refused, states = [], []
        for step in steps_of(net, tiny.FromFunction(bad), processes, elastic_phase(net)):
            refused.append(step.refused)
            states.append(bits(net))
        return refused, [same_bits(*pair) for pair in itertools.pairwise(states)]

    for refused, unchanged in crew(2, job):
        assert [text is None for text in refused] == [True, False, True]
        assert unchanged == [True, False]


def test_dropout_differs_from_process_to_process_and_the_first_draws_as_one_alone() -> None:
    state = torch.get_rng_state()
    try:

        def drawn(*position: int) -> list[float]:
            seed_torch(Stream(3, "full"), *position)
            return torch.rand(8).tolist()

        assert drawn(5, 0) == drawn(5)
        found = [drawn(step, rank) for step in (5, 6) for rank in range(8)]
        assert len(set(map(tuple, found))) == 16
        assert drawn(5, 7) == found[7]
    finally:
        torch.set_rng_state(state)


# Batches


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_a_batch_side_by_side_are_the_batch(parts: int) -> None:
    images = tiny_data(train=40)

    def batches(part: int, parts: int) -> list[Batch]:
        stream, share = Stream(1, "full"), Share(part, parts)
        return list(data.train_batches(images, tiny.data_config(), stream, range(3, 12), share=share))

    whole = batches(0, 1)
    assert len({batch.images.shape[-1] for batch in whole}) == 2
    for batch, *pieces in zip(whole, *(batches(part, parts) for part in range(parts)), strict=True):
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shares_of_a_split_are_its_batches_dealt_out(parts: int) -> None:
    images = tiny_data(val=23).val

    def batches(part: int, parts: int) -> list[Batch]:
        settings: dict[str, Any] = {"resolution": 16, "eval_crop": 1.0, "batch_size": 5}
        return list(data.eval_batches(images, share=Share(part, parts), **settings))

    rounds = itertools.zip_longest(*(batches(part, parts) for part in range(parts)))
    dealt = [batch for one in rounds for batch in one if batch is not None]
    whole = batches(0, 1)
    assert [len(batch.targets) for batch in whole] == [5, 5, 5, 5, 3]
    assert all(map(torch.equal, (b.images for b in dealt), (b.images for b in whole)))
    assert all(map(torch.equal, (b.targets for b in dealt), (b.targets for b in whole)))
    assert len(dealt) == len(whole)


# Evaluating


def test_every_process_finds_the_scores_of_one_alone() -> None:
    net, images = tiny_net("ee_d", depth=(1, 2), num_classes=3), tiny_data(classes=3, val=61)
    made = itertools.product((3, 5), (2, 3), (1, 2), (1, 3))
    several = [net.space.uniform(kernel=k, expand=e, depth=d, height=h, resolution=16) for k, e, d, h in made][:10]
    assert len(nested_groups(several)) == 5, "three processes take one each, and the others together"
    questions: dict[str, Callable[[Any], Any]] = {
        "several groups": lambda evaluator: list(evaluator.scores(net, several, images.val)),
        "one group": lambda evaluator: list(evaluator.scores(net, [net.space.largest()], images.test)),
        "the ends": lambda evaluator: list(
            evaluator.scores(net, [net.space.largest(), net.space.smallest()], images.val)
        ),
        "none": lambda evaluator: list(evaluator.scores(net, [], images.val)),
        "exits": lambda evaluator: evaluator.exit_scores(module, 20, images.val),
        "ensemble": lambda evaluator: evaluator.ensemble_score(module, B, 20, images.val),
    }
    module = tiny_evaluator(images).calibrated(net, net.space.largest(), net.architecture.exits)
    alone = {name: question(tiny_evaluator(images)) for name, question in questions.items()}
    assert len({score.value for score in alone["several groups"]}) >= 3, "the networks can be told apart"

    def job(processes: Processes) -> Any:
        evaluator = tiny_evaluator(images)
        evaluator.runtime = on(processes)
        return {name: question(evaluator) for name, question in questions.items()}

    assert all(found == alone for found in crew(3, job))


# What processes tell each other


def test_values_metrics_flags_and_counts() -> None:
    def job(processes: Processes) -> Any:
        rank = processes.rank
        return {
            "first": processes.on_main(lambda: (rank, torch.arange(3), {"a": None})),
            "gather": processes.gather({"rank": rank}),
            "any": processes.any(False, rank == 1, True),
            "mean": processes.mean({"a": float(rank), "b": 0.1}),
            "totals": processes.totals([torch.tensor([rank, 0.5]), torch.tensor([10.0])] if rank else []),
            "on_all": processes.on_all(lambda: rank),
        }

    for rank, found in enumerate(crew(3, job)):
        zero, tensor, other = found["first"]
        assert (zero, tensor.tolist(), other) == (0, [0, 1, 2], {"a": None})
        assert found["gather"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["any"] == (False, True, True)
        assert found["mean"] == pytest.approx({"a": 1.0, "b": 0.1})
        assert [total.tolist() for total in found["totals"]] == [[3, 1.0], [20]]
        assert found["on_all"] == rank


def test_one_process_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "broadcast", "broadcast_object_list", "all_gather_object", "init_process_group"):
        monkeypatch.setattr(dist, name, None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as processes:
        assert processes is SINGLE_PROCESS
    tensor = torch.ones(2)
    SINGLE_PROCESS.average([tensor])
    SINGLE_PROCESS.copy_first([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert (
        SINGLE_PROCESS.on_main(lambda: 1)
        == SINGLE_PROCESS.on_all(lambda: 1)
        == SINGLE_PROCESS.local_main_first(lambda: 1)
        == 1
    )
    assert SINGLE_PROCESS.gather(2) == [2]
    assert SINGLE_PROCESS.any(True, False) == (True, False)
    assert SINGLE_PROCESS.mean({"a": 0.1}) == {"a": 0.1}
    assert SINGLE_PROCESS.totals([torch.tensor([1.0])])[0].tolist() == [1]
    with pytest.raises(RunError, match="as it is"):
        SINGLE_PROCESS.refuse(RunError("as it is"))
    with pytest.raises(UserError, match="as it is"):
        SINGLE_PROCESS.on_all(lambda: SINGLE_PROCESS.refuse(UserError("as it is")))


def test_torchrun_with_one_process_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with process_group() as processes:
        assert processes is SINGLE_PROCESS
    assert not dist.is_initialized()


@pytest.mark.parametrize("value", ["two", "", "-1", "1.5", "²"])
def test_an_environment_that_is_no_torchruns_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match=rf"WORLD_SIZE \({value}\)"), process_group():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE \(2\): the processes can't find each other"), process_group():
        pass


def test_a_machine_that_nobody_knows_is_said_at_once_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: object) -> None:
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(-2, "Name or service not known")

    waited: list[float] = []
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", waited.append)
    processes_module._await_name("first.example")
    assert asked == ["first.example"] * 3
    assert len(waited) == 2
    assert len(caplog.records) == 1
    assert "MASTER_ADDR (first.example) is no machine that is known here" in caplog.text
    monkeypatch.setattr(processes_module, "NAME_PATIENCE", timedelta(0))
    asked.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "first.example")
    with (
        pytest.raises(UserError, match=r"MASTER_ADDR \(first\.example\) .* give the first process's machine"),
        process_group(),
    ):
        pass


def test_only_the_first_process_logs_and_joining_twice_is_joining_once(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> Any:
        with console.show_logs(), process_group() as processes:
            with process_group() as again:
                assert again == processes
            assert own_rank() == processes.rank
            logging.getLogger("ofav2.training").warning(f"note {processes.rank}")
            return processes

    assert [member.found for member in run_apart(2, job)] == [Processes(0, 2, 0), Processes(1, 2, 1)]
    assert capfd.readouterr().err == "note 0\n"


# How they end


def kinds(ended: list[Ended]) -> list[str]:
    return [type(member.error).__name__ for member in ended]


@pytest.mark.parametrize("refusing", [(0,), (1,), (0, 1, 2), (1, 2)])
def test_what_some_refuse_ends_all_and_is_told_once(refusing: tuple[int, ...]) -> None:
    def job(processes: Processes) -> None:
        def do() -> None:
            if processes.rank in refusing:
                raise UserError(f"no, from {processes.rank}")

        processes.on_all(do)

    ended = run_crew(3, job)
    assert kinds(ended) == ["UserError" if rank == refusing[0] else "Lost" for rank in range(3)]
    assert str(ended[refusing[0]].error) == f"no, from {refusing[0]}"


def test_what_all_refuse_is_told_by_the_first() -> None:
    assert kinds(run_crew(3, lambda processes: processes.refuse(RunError("no")))) == ["RunError", "Lost", "Lost"]


def fail(processes: Processes) -> None:
    if processes.rank == 1:
        raise OSError("a bug, or a disk")


def die(processes: Processes) -> None:
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [fail, die])
@pytest.mark.parametrize("talk", ["on_main", "gather", "any", "mean", "average", "copy_first", "local_main_first"])
def test_whoever_waits_for_a_process_that_is_gone_ends_too(end: Any, talk: str) -> None:
    """The crew's own patience is the test: nobody hangs."""
    arguments: dict[str, Any] = {
        "on_main": (lambda: 1,),
        "gather": (1,),
        "any": (True,),
        "mean": ({"a": 1.0},),
        "average": ([torch.ones(5)],),
        "copy_first": ([torch.ones(5)],),
        "local_main_first": (lambda: 1,),
    }

    def job(processes: Processes) -> None:
        processes.gather("here")
        end(processes)
        # What is sent before the other one is gone may still arrive somewhere.
        for _ in range(100):
            getattr(processes, talk)(*arguments[talk])

    first, second = run_crew(2, job)
    assert isinstance(first.error, Lost)
    assert str(first.error).startswith("another process of the run is gone")
    assert len(str(first.error).splitlines()) == 1
    assert (second.code == -signal.SIGKILL) if end is die else isinstance(second.error, OSError)


@pytest.fixture
def torchruns_store() -> Iterator[int]:
    """The port of a store as torchrun's own, in a process apart: a thread may hold a lock when a crew is forked."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def serve() -> None:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)
        store.set("ofav2/here/1", "one that died before it was answered")
        theirs.send(store.port)
        signal.pause()

    server = multiprocessing.get_context("fork").Process(target=serve)
    server.start()
    assert ours.poll(PATIENCE)
    try:
        yield ours.recv()
    finally:
        server.kill()
        server.join()


def test_new_processes_are_not_led_to_those_that_were_killed(torchruns_store: int) -> None:
    """torchrun's store lives through a restart, with all that the processes before it had written."""
    theirs = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(torchruns_store)}
    for killed in (1, 0, None):

        def job(processes: Processes, killed: int | None = killed) -> list[int]:
            time.sleep(0.3 * processes.rank)
            found = processes.gather(processes.rank)
            if processes.rank == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        for member in run_crew(3, job, dict.fromkeys(range(3), theirs)):
            assert member.error is None
            assert member.found == [0, 1, 2] or member.code == -signal.SIGKILL


def test_one_process_of_each_machine_goes_first(tmp_path: Path) -> None:
    """Two machines of two processes."""
    log = tmp_path / "log"

    def job(processes: Processes) -> Any:
        def do() -> None:
            with log.open("a") as lines:
                lines.write(str(processes.rank))

        return replace(processes, local_rank=processes.rank % 2).local_main_first(do)

    assert crew(4, job) == [None] * 4
    order = log.read_text()
    assert [set(order[:2]), set(order[2:])] == [{"0", "2"}, {"1", "3"}]
    assert len(order) == 4


# What is refused at the start


@pytest.fixture
def three_by_three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Exception | None]]:
    """Prepares a run in three processes several times, each time with other settings; returns how that ended."""
    path = tiny.written(tmp_path, tiny.TWO)
    # Loaded before the processes fork, or each would wait for scikit-learn.
    images = data.open_data(recipe.load(path).data)
    monkeypatch.setattr(prepare, "open_data", lambda config, split: images)

    def attempt(processes: Processes, settings: Sequence[str]) -> Exception | None:
        try:
            prepare.prepare(processes.on_all(lambda: recipe.load(path, settings)), processes)
        except (UserError, Lost) as error:
            return error
        return None

    return lambda settings: crew(3, lambda processes: [attempt(processes, given(processes.rank)) for given in settings])


def test_a_batch_that_cannot_be_shared_out_is_refused_with_both_counts(three_by_three: Any) -> None:
    sizes = (16, 15, 3)
    ended = three_by_three([lambda rank, size=size: [f"data.batch_size={size}"] for size in sizes])
    assert [[type(error) for error in attempts] for attempts in ended] == [
        [UserError, type(None), UserError],
        [Lost, type(None), Lost],
        [Lost, type(None), Lost],
    ]
    assert str(ended[0][0]).startswith("data.batch_size (16) can't be shared out evenly to 3 processes")
    assert str(ended[0][2]).startswith("data.batch_size (3) leaves each of 3 processes one image")


def test_processes_that_disagree_are_refused_with_what_differs(
    three_by_three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = prepare.new_record

    def described(name: str, config: Config, *more: Any, **named: Any) -> RunRecord:
        record = describe(name, config, *more, **named)
        # Instead of several data sets and versions; the learning rate says which.
        other = {
            0.5: replace(record, data=replace(record.data, fingerprint="other")),
            0.6: replace(record, data=replace(record.data, classes=("other",))),
            0.7: replace(record, versions={**record.versions, "torch": "other"}),
        }
        return other.get(config.phases["full"].lr, record) if own_rank() == 2 else record

    monkeypatch.setattr(prepare, "new_record", described)
    same = [lambda rank, lr=lr: ["data.batch_size=15", f"phases.full.lr={lr}"] for lr in (0.5, 0.6, 0.7)]
    ended = three_by_three(
        [
            lambda rank: ["data.batch_size=15", *(["run.seed=1"] if rank == 1 else [])],
            lambda rank: ["data.batch_size=15", *(["phases.kernel.lr=0.5", "data.workers=1"] if rank else [])],
            *same,
            lambda rank: ["data.batch_size=15"],
        ]
    )
    shown = [
        "processes disagree: recipe.run.seed is 0 in process 0, 1 in process 1;",
        "processes disagree: recipe.data.workers is 0 in process 0, 1 in process 1;"
        " recipe.phases.kernel.lr is 0.001 in process 0, 0.5 in process 1;",
        "processes disagree: data.fingerprint is ",
        "processes disagree: data.classes is ",
        "processes disagree: versions.torch is ",
    ]
    for error, text in zip(ended[0], shown, strict=False):
        assert isinstance(error, RunError)
        assert str(error).startswith(text)
    assert ended[0][-1] is None
    for others in ended[1:]:
        assert [type(error) for error in others] == [Lost] * 5 + [type(None)]


# Devices


def test_each_process_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    second = Processes(rank=5, count=6, local_rank=1)
    for name in ("auto", "cuda"):
        assert open_runtime(RunConfig(device=name), second).device == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)] * 2
    assert open_runtime(RunConfig(device="cuda")).device == torch.device("cuda")
    assert open_runtime(RunConfig(device="cpu"), second).device == CPU
    with pytest.raises(UserError, match=r"run\.device \(cuda:1\) would be shared by 6 processes"):
        open_runtime(RunConfig(device="cuda:1"), second)
    with pytest.raises(UserError, match=r"run\.device \(cuda\): this machine has 2 CUDA devices"):
        open_runtime(RunConfig(device="cuda"), replace(second, local_rank=2))
