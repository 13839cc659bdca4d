"""All GPU checks, in eight minutes: the tests of CUDA's promises, and the tables of docs/gpu.md.

python -m benchmarks.gpu --out DIR            writes DIR/gpu.json and DIR/gpu.md; goes on where it was interrupted
python -m benchmarks.gpu --out DIR --quick    the same on the CPU with tiny networks, to see that it works

A part that fails is written down with its error, and the next one runs. Parts that are done are not repeated.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loader, step
from benchmarks.sides import Times, command_line, machine, time_sides
from benchmarks.step import CLASSES, OPTIM, Work
from ofav2.cli import console
from ofav2.config.schema import DataConfig, RunConfig
from ofav2.data import normalise, open_data, train_batches
from ofav2.files import write_json, write_text
from ofav2.rng import Stream
from ofav2.runtime.device import Runtime, open_runtime
from ofav2.training.optim import build_optimizer

MINUTES = 8.0
"""Time after which no further part is started."""
TESTS_SECONDS = 150
"""Time after which the tests are broken off."""
TIMM = "mobilenetv3_large_100"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    device: str = "cuda"
    repeats: int = 11
    batch: int = 64
    large_batch: int = 256
    side: int = 64
    width: float = 1.0
    images: int = 4096
    """Image files that loading is measured with."""
    steps: int = 4
    """Steps whose sub-networks come again."""
    batches: int = 20
    """Batches per timed call of a loader."""

    def work(self, variant: str, batch: int | None = None) -> Work:
        """What a step has to do."""
        return Work(variant, width=self.width, side=self.side, batch=batch or self.batch, steps=self.steps)

    def runtime(self, **settings: Any) -> Runtime:
        """Where a step runs."""
        return open_runtime(RunConfig(device=self.device, **settings))


QUICK = Plan("cpu", repeats=1, batch=8, large_batch=16, side=32, width=0.25, images=64, steps=1, batches=2)
Part = Callable[[Plan], Mapping[str, Any]]
Sides = Mapping[str, Callable[[], object]]


def parts(plan: Plan) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """What is measured, by name, the most important first."""
    compiled = {"compile": True}
    found: dict[str, Callable[[], Mapping[str, Any]]] = {
        "tests": partial(cuda_tests, plan),
        "step beside ofa": partial(beside_ofa, plan, plan.batch),
        "full phase beside timm": partial(beside_timm, plan, plan.batch),
        "loader": partial(loading, plan),
        "EE_D beside plain networks": partial(beside_plain, plan, {}),
        "EE_D beside plain networks, no TF32": partial(beside_plain, plan, {"tf32": False}),
        "EE_D beside plain networks, bfloat16": partial(beside_plain, plan, {"precision": "bfloat16"}),
        "full phase and teacher, compiled": partial(forms, plan, compiled),
        "full phase and teacher, compiled, bfloat16": partial(forms, plan, {**compiled, "precision": "bfloat16"}),
        "step beside ofa, large batch": partial(beside_ofa, plan, plan.large_batch),
        "full phase beside timm, large batch": partial(beside_timm, plan, plan.large_batch),
        "growth": partial(growth, plan),
        "new networks": partial(new_networks, plan),
        "profile": partial(profile, plan),
    }
    return found


def cuda_tests(plan: Plan) -> Mapping[str, Any]:
    """Run the tests with the marker `gpu`; without a card they are all skipped."""
    if importlib.util.find_spec("pytest") is None:
        return {"text": "pytest is not installed: tests are left out"}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "--no-header", "tests/test_gpu.py"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TESTS_SECONDS)
    return {"text": done.stdout[-6000:], "exit code": done.returncode, "last line": _last_line(done.stdout)}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def beside_ofa(plan: Plan, batch: int) -> Mapping[str, Any]:
    """SE_B's step beside that of the package `ofa`."""
    if importlib.util.find_spec("ofa") is None:
        return {"text": "the package ofa is not installed: it is left out"}
    times = step.peer(plan.work("se_b", batch), plan.runtime(), plan.repeats)
    return _table(times, "ofa", goal="5 times as fast as ofa")


def beside_plain(plan: Plan, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """EE_D's step beside the plain extracted networks of the same step."""
    return _table(step.overhead(plan.work("ee_d"), plan.runtime(**settings), plan.repeats), "plain networks")


def forms(plan: Plan, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The full phase's step and the teacher alone, eager and compiled."""
    # On the CPU of the quick form, a C++ compiler would take minutes.
    runtime = plan.runtime(**settings)
    runtime = runtime if plan.device == "cuda" else replace(runtime, compiler=None)
    found = step.forms(plan.work("ee_d"), runtime, plan.repeats)
    rows = {f"{name}, {side}": times for name, sides in found.items() for side, times in sides.items()}
    return _table(rows, next(iter(rows)))


def beside_timm(plan: Plan, batch: int) -> Mapping[str, Any]:
    """EE_D's full phase, largest network with all exits, beside a step of timm's MobileNetV3, per multiply-add."""
    work, runtime = plan.work("ee_d", batch), plan.runtime()
    net = work.net().eval()
    largest = net.space.largest()
    other = runtime.place(timm.create_model(TIMM, num_classes=CLASSES)).eval()
    images, labels = map(runtime.send, work.inputs())
    macs = {
        "ofav2": _macs(lambda: net(work.inputs()[0][:1], largest, exits="all")),
        "timm": _macs(lambda: other(images[:1])),
    }
    other.train()
    sides = {"timm": _stock_step(other, runtime, images, labels), "ofav2": step.our_full_step(work, runtime)}
    times = time_sides(sides, repeats=plan.repeats, device=runtime.device.type)
    per_mac = {name: times[name].median / macs[name] for name in times}
    goal = "within 10 % of timm's time per multiply-add"
    ratio = per_mac["ofav2"] / per_mac["timm"]
    return {**_table(times, "timm", goal), "multiply-adds": macs, "time per multiply-add, ofav2 over timm": ratio}


def _stock_step(module: nn.Module, runtime: Runtime, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    optimizer = build_optimizer(module, OPTIM)

    def run() -> float:
        with runtime.tf32_for_training():
            with runtime.autocast():
                loss = functional.cross_entropy(module(images), labels, label_smoothing=0.1)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def _macs(forward: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 2


def loading(plan: Plan) -> Mapping[str, Any]:
    """Training batches on the device, from the cache, beside PIL and torchvision in two workers."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        _write_images(root, plan.images, plan.side)
        config = DataConfig(
            name="imagefolder",
            root=str(root),
            cache=str(Path(folder) / "cache"),
            resolutions=(plan.side,),
            batch_size=plan.batch,
            workers=2,
        )
        streamed, cached = open_data(replace(config, cache=None)), open_data(config)
        device = torch.device(plan.device)

        def ours() -> Any:
            stream, steps = Stream(0, "full"), range(loader.ENDLESS)
            for batch in train_batches(cached, config, stream, steps, device=device):
                yield normalise(batch.images, cached.mean, cached.std)

        def theirs() -> Any:
            for images in loader._torchvision(config, streamed):
                yield images.to(device, non_blocking=True)

        loaders = {loader.BASE: theirs(), "ofav2, cached": ours()}
        times = time_sides(
            {name: loader._taking(one, plan.batches) for name, one in loaders.items()},
            repeats=max(1, plan.repeats // 2),
            warmup=1,
            device=plan.device,
            # Or one side's workers would decode in the other one's time.
            ready={name: partial(loader._steady, one, config.workers) for name, one in loaders.items()},
        )
    images = plan.batches * plan.batch
    rates = {name: 1000 * images / taken.median for name, taken in times.items()}
    return {**_table(times, loader.BASE, "50 times as fast as PIL with two workers"), "images per second": rates}


def _write_images(root: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("test", max(4, count // 16))):
        for number in range(images):
            path = root / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(path, quality=90)


def growth(plan: Plan) -> Mapping[str, Any]:
    """A step's time over its sub-networks and its images."""
    work, runtime = plan.work("ee_d"), plan.runtime()
    axes = {
        "sub-networks": {count: replace(work, subnets=count) for count in (1, 2, 4)},
        "images": {count: replace(work, batch=count) for count in (work.batch, 2 * work.batch, 4 * work.batch)},
    }
    rows = {
        f"{axis}: {at}": times
        for axis, works in axes.items()
        for at, times in _timed({str(at): step.our_step(one, runtime) for at, one in works.items()}, plan).items()
    }
    return _table(rows, next(iter(rows)))


def _timed(steps: Mapping[str, Callable[[], object]], plan: Plan) -> Mapping[str, Times]:
    warmup = step.warmup(plan.work("ee_d"))
    return time_sides(steps, repeats=max(1, plan.repeats // 2), warmup=warmup, device=plan.device)


def new_networks(plan: Plan) -> Mapping[str, Any]:
    """EE_D's step with sub-networks of shapes that the card never met, and the same ones again."""
    rows: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        times = step_times(plan, precision)
        count = len(times) // 3
        rows |= {f"{precision}, never met": times[:count], f"{precision}, again": times[-count:]}
    return {"mean ms": {name: round(sum(times) / len(times), 1) for name, times in rows.items()}}


def step_times(plan: Plan, precision: str) -> list[float]:
    """Milliseconds of each step of three rounds over the same sub-networks."""
    count = 4 * plan.steps
    work, runtime = replace(plan.work("ee_d"), steps=count, seed=1), plan.runtime(precision=precision)
    run, taken = step.our_step(work, runtime), []
    for _ in range(3 * count):
        started = time.perf_counter()
        run()
        if plan.device == "cuda":
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def profile(plan: Plan) -> Mapping[str, Any]:
    """Where the time of EE_D's step goes."""
    return {"text": step.profile(plan.work("ee_d"), plan.runtime(), 15)}


def _table(times: Mapping[str, Times], base: str, goal: str | None = None) -> dict[str, Any]:
    return {"sides": {name: asdict(found) for name, found in times.items()}, "base": base, "goal": goal}


def run(
    plan: Plan,
    out: Path,
    minutes: float = MINUTES,
    clock: Callable[[], float] = time.monotonic,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure the parts that this machine has not done, as long as there is time, and write both files after each.

    Args:
        plan: How much to measure.
        out: Folder of the files; made where it is missing.
        minutes: Time after which no further part is started.
        clock: Returns seconds.
        only: Names of the parts; None takes all.

    Returns:
        What the JSON holds.
    """
    started, path = clock(), out / "gpu.json"
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (found.get("plan"), found.get("machine")) != (asdict(plan), machine()):
        found = {"plan": asdict(plan), "machine": machine(), "parts": {}}
    for name, measure in parts(plan).items():
        if "error" not in found["parts"].get(name, {"error": ""}) or (only is not None and name not in only):
            continue
        if clock() - started > 60 * minutes:
            console.say(f"{name}: no time left, run the same command again")
            continue
        console.say(f"{name} …")
        begun = clock()
        try:
            result = dict(measure())
        except Exception as error:
            # One part that a card can't do must not cost the others.
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        found["parts"][name] = {**result, "seconds": round(clock() - begun, 1)}
        write_json(path, found)
        write_text(out / "gpu.md", markdown(found))
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """Return all results as Markdown."""
    where, plan = found["machine"], found["plan"]
    lines = [
        "# On a GPU",
        "",
        f"{where['graphics'] or 'no card'}, torch {where['torch']}; width {plan['width']}, {plan['side']} pixels,"
        f" batch {plan['batch']} (large: {plan['large_batch']}), medians of {plan['repeats']}.",
    ]
    for name, part in found["parts"].items():
        lines += ["", f"## {name}", ""]
        if "error" in part:
            lines += [f"Failed: {part['error']}"]
        if "sides" in part:
            base = part["sides"][part["base"]]["median"]
            lines += [f"| side | median ms | quartiles | times as fast as {part['base']} |", "|---|---|---|---|"]
            lines += [
                f"| {side} | {times['median']:.2f} | {times['lower']:.2f} to {times['upper']:.2f} |"
                f" {base / times['median']:.2f} |"
                for side, times in part["sides"].items()
            ]
        lines += [f"\nGoal: {part['goal']}."] if part.get("goal") else []
        plain = {key: value for key, value in part.items() if key not in ("sides", "base", "goal", "text", "error")}
        lines += ["", *(f"- {key}: {value}" for key, value in plain.items())]
        lines += ["", "```", part["text"].rstrip(), "```"] if "text" in part else []
    return "\n".join(lines) + "\n"


@console.show_logs()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"no part starts later ({MINUTES:g})")
    parser.add_argument("--quick", action="store_true", help="on the CPU with tiny networks")
    names = list(parts(Plan()))
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"all by default; {', '.join(names)}")
    chosen = parser.parse_args(arguments)
    if not chosen.quick and not torch.cuda.is_available():
        parser.error("this machine has no card that torch can use: try --quick, which runs on the CPU")
    run(QUICK if chosen.quick else Plan(), chosen.out, chosen.minutes, only=chosen.parts)
    console.say(f"made {chosen.out / 'gpu.md'}")


if __name__ == "__main__":
    command_line(main)
