"""Time a training step beside the plainest form of the same work; docs/performance.md has the results.

python -m benchmarks.step peer                 SE_B beside the package `ofa`
python -m benchmarks.step overhead             EE_D with ENS-KD beside the plain extracted networks
python -m benchmarks.step forms                the full phase's step and the teacher alone, compiled and narrow as well
python -m benchmarks.step memory               peak memory of both, each in a process of its own
python -m benchmarks.step growth               time over sub-networks, batch, resolution and processes, with a plot
python -m benchmarks.step profile              where the time of EE_D's step goes
python -m benchmarks.step operations           how many operations EE_D's step sends, beside the plain networks
torchrun --standalone --nproc-per-node N -m benchmarks.step together --threads 1
                                               EE_D's step in N processes, each with a batch of its own

All but memory and operations take --device cuda, --no-tf32 and --compile, of which the settings are our side's; TF32 is
the card's in a timed call, so of the other sides' as well.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import distill
import supernets
from benchmarks.sides import RESULTS, Times, command_line, report, time_sides, write
from ofav2.cli import console
from ofav2.config.schema import OptimConfig, PhaseConfig, RunConfig, TeacherConfig, UnlockConfig
from ofav2.data import Batch, normalise
from ofav2.rng import Stream
from ofav2.runtime.compiling import compiled
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.runtime.memory import keep_freed_memory
from ofav2.runtime.processes import process_group
from ofav2.tables import table
from ofav2.tasks.classification import Classification
from ofav2.training.objectives import Distill, Draw, Joint, Objective, Teacher, as_teacher, compiled_exits
from ofav2.training.optim import make_updates
from ofav2.training.phases import Phase, make_plan
from ofav2.training.step import Guard, train_steps
from ofav2.training.teacher import prepare_teacher
from supernets import Subnet, Supernet
from supernets.cpu_kernels import depthwise_conv2d

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
CLASSES = 200
SMOOTHING = 0.1
TASK = Classification(CLASSES, SMOOTHING)
CPU = torch.device("cpu")
OPTIM = OptimConfig()
PROCESSES = 1, 2
"""How many processes growth is measured with: as many as cores, on the machine that the goals are set for."""


@dataclass(frozen=True)
class Work:
    """What all sides have to do in a step."""

    variant: str
    """Name of the supernet."""
    width: float = 1.0
    """Width multiplier."""
    side: int = 64
    """Image side in pixels."""
    batch: int = 64
    """Images."""
    subnets: int = 2
    """Sub-networks."""
    seed: int = 0
    """Seed of sub-networks and images."""
    dropout: float = 0.1
    """Dropout probability of the students."""
    steps: int | None = None
    """After so many steps the same sub-networks come again: a card prepares every new shape once, which can take longer
    than a step. None draws new ones in every step."""

    def net(self) -> Supernet:
        """A fresh supernet."""
        return supernets.create(
            self.variant,
            num_classes=CLASSES,
            width_mult=self.width,
            resolutions=(self.side,),
            dropout=self.dropout,
            seed=self.seed,
        )

    def phase(self) -> Phase:
        """The last phase of progressive shrinking, in which everything may be drawn; longer than any benchmark."""
        space = self.net().space
        unlock = UnlockConfig(
            **{name: getattr(space, name) for name in ("kernel", "level", "height", "depth", "expand")}
        )
        config = PhaseConfig(epochs=1.0, lr=0.0075, subnets=self.subnets, dropout=self.dropout, unlock=unlock)
        return make_plan({"all": config}, TeacherConfig("none"), space, 10**6).phases[0]

    def draw(self, phase: Phase) -> Draw:
        """The sub-networks of a phase's steps."""
        return Repeated(phase.sampler, phase.drawn, Stream(self.seed, phase.name), self.steps)

    def images(self) -> Batch:
        """Random pixels and labels."""
        rng = torch.Generator().manual_seed(self.seed)
        pixels = torch.randint(256, (self.batch, 3, self.side, self.side), generator=rng, dtype=torch.uint8)
        return Batch(pixels, torch.randint(CLASSES, (self.batch,), generator=rng))

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The same, normalised."""
        batch = self.images()
        return normalise(batch.images, MEAN, STD), batch.targets


@dataclass(frozen=True)
class Repeated(Draw):
    """Draws the sub-networks of the first steps again and again."""

    steps: int | None
    """How many; None never repeats them."""

    def at(self, step: int, resolution: int) -> tuple[Subnet, ...]:
        """The sub-networks of a step."""
        return super().at(step % self.steps if self.steps else step, resolution)


def our_step(work: Work, runtime: Runtime, teachers_precision: str | None = None) -> Callable[[], float]:
    """A step of our own training loop, teacher included; returns its loss."""
    net, phase = work.net(), work.phase()
    teacher = our_teacher(work, runtime, teachers_precision)
    objective = Distill(TASK, work.draw(phase), net, teacher, distill.soft_cross_entropy, 1.0)
    return _step_of(work, runtime, phase, objective, net)


def our_full_step(work: Work, runtime: Runtime) -> Callable[[], float]:
    """A step of the full phase, the largest network with all its exits; returns its loss."""
    config = PhaseConfig(epochs=1.0, lr=0.0075, dropout=work.dropout)
    net = runtime.place(work.net())
    assert isinstance(net, Supernet)
    phase = make_plan({"full": config}, TeacherConfig("none"), net.space, 10**6).phases[0]
    weights = distill.exit_weights("ascending", len(net.architecture.exits)).losses
    forward = compiled_exits(net, phase.space.largest(), runtime.compiler)
    return _step_of(work, runtime, phase, Joint(TASK, work.draw(phase), weights, forward), net)


def _step_of(work: Work, runtime: Runtime, phase: Phase, objective: Objective, net: Supernet) -> Callable[[], float]:
    images, targets = map(runtime.send, work.images())
    runtime.place(net)
    runtime.use_cpu_kernels(net)
    net.set_dropout(phase.config.dropout)
    steps = train_steps(
        net,
        # Normalising is part of a step.
        (Batch(normalise(images, MEAN, STD), targets) for _ in itertools.count()),
        objective,
        make_updates(net, OPTIM, steps=phase.steps, warmup_steps=phase.warmup_steps, peak=phase.config.lr),
        guard=Guard(0.0),
        stream=Stream(work.seed, phase.name),
        runtime=runtime,
    )
    return lambda: next(steps).metrics["loss"]


def our_teacher(work: Work, runtime: Runtime, precision: str | None = None) -> Teacher:
    """The largest network with all its exits, as a phase's teacher is made.

    Args:
        work: What to do.
        runtime: Where.
        precision: Arithmetic of the teacher; None takes the runtime's.
    """
    net = work.net()
    module = prepare_teacher(net.extract(net.space.largest(), exits="all"), runtime)
    weights = distill.exit_weights("ascending", len(net.architecture.exits)).ensemble
    arithmetic = replace(runtime, precision=precision or runtime.precision).autocast
    return as_teacher(compiled("teacher", module, module, runtime.compiler), weights, arithmetic)


def drawn(work: Work) -> Iterator[tuple[Subnet, ...]]:
    """The sub-networks of one step after the other."""
    draw = work.draw(work.phase())
    return (draw.at(number, work.side) for number in itertools.count())


def peers_step(
    work: Work, layout: torch.memory_format = torch.contiguous_format, device: torch.device = CPU
) -> Callable[[], float]:
    """A step as the package `ofa` trains: `train_one_epoch` of its progressive shrinking, without data and meters.

    Args:
        work: What to do.
        layout: Memory layout of the images, which its layers take over; its own loader's is contiguous.
        device: Where.
    """
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
    from ofa.imagenet_classification.networks import MobileNetV3Large
    from ofa.utils import cross_entropy_loss_with_soft_target, cross_entropy_with_label_smoothing

    warnings.filterwarnings("ignore", message="Implicit dimension choice for log_softmax")
    norm = {"bn_param": (0.1, 1e-5), "width_mult": work.width}
    choices = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
    net = OFAMobileNetV3(n_classes=CLASSES, dropout_rate=work.dropout, **norm, **choices).to(device)
    teacher = MobileNetV3Large(CLASSES, dropout_rate=0, ks=7, expand_ratio=6, depth_param=4, **norm).to(device)
    decayed, free = net.get_parameters(["bn", "bias"], "exclude"), net.get_parameters(["bn", "bias"], "include")
    groups = [{"params": decayed, "weight_decay": OPTIM.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0075, momentum=OPTIM.momentum, nesterov=True)
    images, labels = (tensor.to(device) for tensor in work.inputs())
    images = images.contiguous(memory_format=layout)
    subnets = drawn(work)

    def step() -> float:
        net.train()
        teacher.train()
        with torch.no_grad():
            soft = functional.softmax(teacher(images).detach(), dim=1)
        net.zero_grad()
        losses = []
        for subnet in next(subnets):
            activate(net, subnet)
            output = net(images)
            loss = cross_entropy_loss_with_soft_target(output, soft)
            loss = loss + cross_entropy_with_label_smoothing(output, labels, SMOOTHING)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        return statistics.mean(losses)

    return step


def activate(net: Any, subnet: Subnet) -> None:
    """Sets the peer's active sub-network; blocks that do not run get any value."""

    def padded(rows: tuple[tuple[int | None, ...], ...]) -> list[int | None]:
        return [value for row in rows for value in (*row, *(3,) * (4 - len(row)))]

    net.set_active_subnet(ks=padded(subnet.kernel), e=padded(subnet.expand), d=list(subnet.depth))


class PlainNetworks:
    """A step's plain extracted networks, forward and backward with the same losses, and the teacher's forward.

    There is no optimiser. Networks are extracted by `prepare`, outside of what is timed.

    Args:
        work: What to do.
        runtime: Where.
    """

    def __init__(self, work: Work, runtime: Runtime) -> None:
        self.net = work.net().train()
        self.runtime = runtime
        self.teach = our_teacher(work, runtime)
        self.images, self.labels = map(runtime.send, work.inputs())
        self.subnets = drawn(work)
        self.ready: list[GraphModule] = []
        self.ready_with_our_depthwise: list[GraphModule] = []

    def prepare(self) -> None:
        """Extracts the next step's networks."""
        self.ready = [self.net.extract(subnet) for subnet in next(self.subnets)]
        for module in self.ready:
            self.runtime.place(module).train()
        self.ready_with_our_depthwise = [with_our_depthwise(module) for module in self.ready]

    def step(self) -> float:
        """As torch has them."""
        return self._step(self.ready)

    def step_with_our_depthwise(self) -> float:
        """With our depthwise convolution, so that other layers and elasticity are what is left of the difference."""
        return self._step(self.ready_with_our_depthwise)

    def _step(self, modules: Sequence[nn.Module]) -> float:
        target = self.teach(self.images)
        losses = []
        for module in modules:
            module.zero_grad(set_to_none=True)
            with self.runtime.autocast():
                output = module(self.images)
                loss = distill.student_loss(
                    output,
                    TASK.loss(output, self.labels),
                    target=target,
                    distance=distill.soft_cross_entropy,
                    kd_ratio=1.0,
                )["loss"]
            loss.backward()
            losses.append(loss.item())
        return statistics.mean(losses)


class OurDepthwise(nn.Module):
    """A depthwise convolution with the supernet's gradient.

    Args:
        conv: The stock layer, whose weight it shares.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.stride = conv.weight, conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        """As the stock layer's."""
        kernel = self.weight.shape[-1]
        return depthwise_conv2d(x, self.weight, None, self.stride, kernel // 2, groups=len(self.weight))


def with_our_depthwise(module: GraphModule) -> GraphModule:
    """The same network, sharing all weights, with our depthwise convolutions."""
    layers = {str(node.target): module.get_submodule(str(node.target)) for node in module.graph.nodes if _layer(node)}
    replaced = {
        name: OurDepthwise(layer) if isinstance(layer, nn.Conv2d) and layer.groups > 1 else layer
        for name, layer in layers.items()
    }
    return GraphModule(replaced, module.graph)


def _layer(node: Node) -> bool:
    return node.op == "call_module"


def peer(work: Work, runtime: Runtime, repeats: int) -> dict[str, Times]:
    """SE_B's step beside that of the package `ofa`."""
    sides = {
        "ofa": _as_ours(peers_step(work, device=runtime.device), runtime),
        "ofa, given channels-last images": _as_ours(peers_step(work, torch.channels_last, runtime.device), runtime),
        "ofav2": our_step(work, runtime),
    }
    times = time_sides(sides, repeats=repeats, warmup=warmup(work), device=runtime.device.type)
    title = f"training step, {work.variant}, 1 teacher + {work.subnets} sub-networks, {work.batch} x {work.side} px"
    report("step-peer", title, times, "ofa", {"work": asdict(work), "load": os.getloadavg()})
    return times


def overhead(work: Work, runtime: Runtime, repeats: int) -> dict[str, Times]:
    """EE_D's step beside its plain parts."""
    plain = PlainNetworks(work, runtime)
    sides = {"plain networks": _as_ours(plain.step, runtime), "ofav2": our_step(work, runtime)}
    if runtime.device.type == "cpu":
        sides["plain networks, our depthwise gradients"] = _as_ours(plain.step_with_our_depthwise, runtime)
    times = time_sides(sides, repeats=repeats, warmup=warmup(work), before=plain.prepare, device=runtime.device.type)
    title = f"training step, {work.variant}, 1 teacher + {work.subnets} sub-networks, {work.batch} x {work.side} px"
    report("step-overhead", title, times, "plain networks", {"work": asdict(work), "load": os.getloadavg()})
    return times


def warmup(work: Work) -> int:
    """Steps before the first one that is timed: until all sub-networks that come again were trained once."""
    return 2 + (work.steps or 0)


def _as_ours(step: Callable[[], float], runtime: Runtime) -> Callable[[], float]:
    """A step of another side, its products rounded as our training loop rounds its own."""

    def same_products() -> float:
        with runtime.tf32_for_training():
            return step()

    return same_products


def forms(work: Work, runtime: Runtime, repeats: int) -> dict[str, dict[str, Times]]:
    """The full phase's step, and the teacher alone, in each of their forms; compiled ones where the runtime has any."""
    plain = replace(runtime, compiler=None)
    images = runtime.send(work.inputs()[0])
    ways = {"eager": plain} | ({"compiled": runtime} if runtime.compiler else {})
    sides: dict[str, dict[str, Callable[[], object]]] = {
        "full": {way: our_full_step(work, where) for way, where in ways.items()},
        "teacher": {
            f"{way}, {precision}": _teacher_pass(our_teacher(work, where, precision), images, where)
            for way, where in ways.items()
            for precision in ("float32", "bfloat16")
        },
    }
    found = {}
    for name, steps in sides.items():
        found[name] = time_sides(steps, repeats=repeats, device=runtime.device.type)
        facts = {"work": asdict(work), "load": os.getloadavg(), "tf32": runtime.tf32}
        title = f"{name}, {work.variant}, the largest network with all exits, {work.batch} x {work.side} px"
        report(f"step-forms-{name}", title, found[name], next(iter(steps)), facts)
    return found


def _teacher_pass(teacher: Teacher, images: Tensor, runtime: Runtime) -> Callable[[], object]:
    def teach() -> object:
        with runtime.tf32_for_training():
            return teacher(images)

    return teach


def memory(work: Work, steps: int) -> dict[str, float]:
    """Peak memory of both, in MiB above that of the process before there was a network."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = {name: pool.submit(peak_of, name, work, steps).result() for name in ("ofa", "ofav2")}
    rows = [(name, peak, peak / found["ofa"]) for name, peak in found.items()]
    console.show(table(f"peak memory of {steps} steps", ("side", "MiB", "share of ofa's"), rows))
    write("step-memory", {"MiB": found, "steps": steps, "work": asdict(work)})
    return found


def peak_of(name: str, work: Work, steps: int) -> float:
    """MiB that a side's steps need at most, above what this process had at most so far."""
    if name == "ofa":
        import ofa.imagenet_classification.elastic_nn.networks  # noqa: F401
    runtime = Runtime(torch.device("cpu"), "float32")
    torch.set_num_threads(1)
    before = _peak()
    if name == "ofav2":
        keep_freed_memory()
        step = our_step(work, runtime)
    else:
        step = peers_step(work)
    for _ in range(steps):
        step()
    return _peak() - before


def _peak() -> float:
    """Largest resident memory of this process so far, in MiB; of the program that runs, unlike getrusage's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def together_step(work: Work, settings: RunConfig, repeats: int) -> None:
    """A step of the processes that torchrun started, each with a batch of its own; the first one reports."""
    with process_group() as processes:
        step = our_step(work, open_runtime(settings, processes))
        times = time_sides({"ofav2": step}, repeats=repeats, device=settings.device)
        if processes.rank == 0:
            title = f"training step, {work.variant}, {processes.count} processes of {work.batch} images each"
            facts = {"work": asdict(work), "load": os.getloadavg(), "processes": processes.count}
            report("step-together", title, times, "ofav2", facts)


def over_processes(
    work: Work, settings: RunConfig, repeats: int, counts: Sequence[int] = PROCESSES
) -> dict[int, float]:
    """Milliseconds of a step of several processes, each of one thread and with a batch of its own.

    As many times the images take as many times the time in one process; on idle cores, all of it is to be saved.
    """
    options = {"device": settings.device, "precision": settings.precision, "repeats": repeats, "threads": 1}
    options |= {name: getattr(work, name) for name in ("variant", "batch", "side", "subnets", "width")}
    switches = [*(() if settings.tf32 else ("--no-tf32",)), *(("--compile",) if settings.compile else ())]
    found = {}
    # A card is for one process.
    for count in counts if settings.device == "cpu" else counts[: torch.cuda.device_count()]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = ["-m", "benchmarks.step", "together", *(f"--{name}={value}" for name, value in options.items())]
        command += switches
        subprocess.run(torchrun + command, check=True)
        measured = json.loads((RESULTS / "step-together.json").read_text())
        assert measured["processes"] == count
        found[count] = measured["sides"]["ofav2"]["median"]
    return found


def growth(
    work: Work, runtime: Runtime, repeats: int, plot: Path, processes: Mapping[int, float]
) -> dict[str, dict[int, float]]:
    """Milliseconds of a step over its sub-networks, its batch and its resolution; the smallest one is timed, too.

    Args:
        work: What to do, at most.
        runtime: Where.
        repeats: Timed steps of each.
        plot: Where to draw.
        processes: What `over_processes` found, which is shown as well.
    """
    axes: dict[str, dict[int, Work]] = {
        "sub-networks": {count: replace(work, subnets=count) for count in (1, 2, 4, 8)},
        "images": {count: replace(work, batch=count) for count in (work.batch // 4, work.batch // 2, work.batch)},
        "side in pixels": {side: replace(work, side=side) for side in (work.side // 2, 3 * work.side // 4, work.side)},
    }
    found: dict[str, dict[int, float]] = {}
    for axis, works in axes.items():
        steps = {str(at): our_step(one, runtime) for at, one in works.items()}
        times = time_sides(steps, repeats=repeats, device=runtime.device.type)
        found[axis] = {at: times[str(at)].median for at in works}
    found["processes, a batch each"] = dict(processes)
    # One card has one process.
    powers = {axis: power(points) for axis, points in found.items() if len(points) > 1}
    rows = [(axis, at, ms, powers.get(axis)) for axis, points in found.items() for at, ms in points.items()]
    columns = ("over", "at", "median ms", "power between the ends")
    console.show(table(f"a step of {work.variant}; a power of 1 is linear, of 2 for pixels", columns, rows))
    write("step-growth", {"ms": found, "power": powers, "work": asdict(work), "load": os.getloadavg()})
    # matplotlib is a development tool, which a machine with a GPU may lack.
    from benchmarks.plots import curves

    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(curves(found, "ms a step"), encoding="utf-8")
    console.say(f"made {plot}")
    return found


def power(points: Mapping[int, float]) -> float:
    """p of time ~ size ** p, between the smallest and the largest size."""
    first, last = min(points), max(points)
    return math.log(points[last] / points[first]) / math.log(last / first)


def profile(work: Work, runtime: Runtime, rows: int) -> str:
    """torch.profiler's tables of one step."""
    step = our_step(work, runtime)
    for _ in range(warmup(work)):
        step()
    on_cuda = runtime.device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if on_cuda else [kinds.CPU]) as seen:
        step()
    # A card that waits for the next kernel is as slow as the processor that sends it.
    orders = ["self_cuda_time_total", "self_cpu_time_total"] if on_cuda else ["self_cpu_time_total"]
    found = seen.key_averages()
    return "\n".join(found.table(sort_by=order, row_limit=rows, max_name_column_width=60) for order in orders)


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class TorchsKernels(Runtime):
    """The CPU with the operations that a card is sent."""

    def use_cpu_kernels(self, module: nn.Module) -> None:
        """Leave torch's own."""


def operations(work: Work, rows: int) -> dict[str, Counter[str]]:
    """How many operations a step of ours and of the plain networks has: what sets the pace on a card.

    Args:
        work: What to do; batch and side change nothing.
        rows: How many names to show.
    """
    runtime = TorchsKernels(CPU, "float32")
    plain, ours = PlainNetworks(work, runtime), our_step(work, runtime)
    # The optimiser's state is made in the first step; the second one is counted.
    ours()
    for _ in range(2):
        plain.prepare()
    found = {}
    for name, run in (("plain networks", plain.step), ("ofav2", ours)):
        with Counting() as counting:
            run()
        found[name] = counting.found
    names = sorted(found["ofav2"], key=lambda name: -found["ofav2"][name])[:rows]
    shown = [(name, *(counts[name] for counts in found.values())) for name in names]
    shown.append(("all", *(counts.total() for counts in found.values())))
    console.show(table(f"operations of a step of {work.variant}", ("name", *found), shown))
    return found


@console.show_logs()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("peer", "overhead", "forms", "memory", "growth", "profile", "operations", "together")
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True, help="as run.tf32")
    parser.add_argument("--compile", action="store_true", help="as run.compile")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of our side")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--subnets", type=int, default=2)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--variant", choices=supernets.names(), help="by default what the benchmark is about")
    parser.add_argument("--plot", type=Path, default=RESULTS / "step-growth.svg", help="where growth draws")
    chosen = parser.parse_args()
    variant = chosen.variant or ("se_b" if chosen.what in ("peer", "memory") else "ee_d")
    work = Work(variant, width=chosen.width, side=chosen.side, batch=chosen.batch, subnets=chosen.subnets)
    if chosen.what == "operations":
        operations(work, 25)
        return
    if chosen.what == "memory":
        if chosen.device != "cpu":
            parser.error(f"--device {chosen.device}: memory is a process's, which has a meaning on the CPU alone")
        memory(work, chosen.repeats)
        return
    keep_freed_memory()
    settings = RunConfig(
        device=chosen.device,
        precision=chosen.precision,
        tf32=chosen.tf32,
        compile=chosen.compile,
        threads=chosen.threads,
    )
    if chosen.what == "together":
        together_step(work, settings, chosen.repeats)
        return
    runtime = open_runtime(settings)
    if chosen.what == "peer":
        peer(work, runtime, chosen.repeats)
    elif chosen.what == "overhead":
        overhead(work, runtime, chosen.repeats)
    elif chosen.what == "forms":
        forms(work, runtime, chosen.repeats)
    elif chosen.what == "growth":
        growth(work, runtime, chosen.repeats, chosen.plot, over_processes(work, settings, chosen.repeats))
    else:
        console.say(profile(work, runtime, 25))


if __name__ == "__main__":
    command_line(main)
