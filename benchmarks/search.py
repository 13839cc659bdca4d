"""The search engine beside other searches, on tables of measured networks; docs/log has the results.

python -m benchmarks.search DATA                           # every method on every problem
python -m benchmarks.search DATA --methods ofav2 linas --problems ofa --seeds 20
python -m benchmarks.search DATA --methods ofav2 --settings batch=25 growth=0 optimism=1
python -m benchmarks.search DATA --keep FOLDER             # a file per search; searches that it has are not run again

DATA holds two files of other projects, which are not part of this one:

- `nas-bench-macro_cifar10.json`: NAS-Bench-Macro (github.com/xiusu/NAS-Bench-Macro);
- `ofa_space_accuracy_predictor.npz`: the weights of the accuracy predictor of OFA's space, `acc_predictor.pth` of
  github.com/gatech-sysml/CompOFA, as arrays.

A search sees noisy accuracies, as it does in practice. It is scored by the noise-free ones of what it measured: their
hypervolume, as a share of the best that is known.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from sklearn.linear_model import Ridge

import supernets
from benchmarks.sides import command_line
from ofav2 import files
from ofav2.cli import console
from ofav2.nas.cost_model import CostModel
from ofav2.nas.engine.features import one_hot
from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.loop import Picked, SearchSettings, search
from ofav2.nas.engine.problem import Floats, Genes, Problem
from ofav2.nas.genes import GeneSpace
from ofav2.nas.limits import Limits
from ofav2.tables import table

MACRO, OFA = "nas-bench-macro_cifar10.json", "ofa_space_accuracy_predictor.npz"
CHECKPOINTS = (50, 100, 150, 200, 250, 300)
"""Measurements after which hypervolumes are compared."""
MILLION = 1e6


class Table(Problem, Protocol):
    """A problem whose true losses are known."""

    @property
    def reference(self) -> Floats:
        """The worst loss and cost that count."""
        ...

    @property
    def best(self) -> float:
        """The best known hypervolume."""
        ...

    @property
    def target(self) -> float:
        """The hypervolume to which measurements are counted."""
        ...

    def true(self, genes: Genes) -> Floats:
        """Return losses without noise, (N,)."""
        ...


@dataclass(frozen=True, eq=False)
class OfaSpace:
    """OFA's MobileNetV3 space on ImageNet: multiply-adds and the accuracy that a published predictor gives.

    A measurement has Gaussian noise with a standard deviation of 0.05 points, as recalibration makes.
    """

    weights: Sequence[NDArray[np.float32]]
    biases: Sequence[NDArray[np.float32]]
    rng: np.random.Generator
    reference: Floats = field(default_factory=lambda: np.array([-76.0, 420.0]))
    best: float = 2258.5
    """NSGA-II on the noise-free predictor, 80,000 evaluations."""
    target: float = 1846.0
    """What LINAS has after 300 measurements, from an earlier measurement."""
    noise: float = 0.05

    @classmethod
    def read(cls, data: Path, seed: int) -> "OfaSpace":
        """Read the predictor; the seed is that of the noise."""
        arrays = np.load(data / OFA)
        layers = sorted({name.split(".")[0] for name in arrays.files})
        weights, biases = ([arrays[f"{layer}.{kind}"] for layer in layers] for kind in ("weight", "bias"))
        return cls(weights, biases, np.random.default_rng([seed, 1]))

    @cached_property
    def space(self) -> GeneSpace:
        net = supernets.create("se_b", num_classes=1000, width_mult=1.0, resolutions=(160, 176, 192, 208, 224))
        return GeneSpace(net.space, CostModel(net.architecture), Limits(), ("macs",))

    @property
    def choices(self) -> tuple[int, ...]:
        return self.space.choices

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        return self.space.active(genes)

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        return self.space.repair(genes, rng)

    def costs(self, genes: Genes) -> Floats:
        return self.space.costs(genes) / MILLION

    def traits(self, genes: Genes) -> Sequence[Floats]:
        return self.space.traits(genes)

    def anchors(self) -> Genes:
        return self.space.anchors()

    def nested(self, body: NDArray[np.int64]) -> Genes:
        return self.space.nested(body)

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        for place, loss in enumerate(self.true(bodies)):
            yield place, np.array([loss + self.noise * self.rng.normal()])

    def true(self, genes: Genes) -> Floats:
        values = self._inputs(genes)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ weight.T + bias, 0)
        return -100.0 * (values @ self.weights[-1].T + self.biases[-1])[:, 0].astype(np.float64)

    def _inputs(self, genes: Genes) -> NDArray[np.float32]:
        """Return 60 columns of kernels, 60 of expansions, 8 of resolutions, (N, 128)."""
        count = len(genes)
        # Each stage has a gene of depth, and three of each block: kernel, expansion, level.
        blocks = genes[:, 2:].reshape(count, 5, 13)[:, :, 1:].reshape(count, 20, 3)
        runs = self.active(genes)[:, 2:].reshape(count, 5, 13)[:, :, 1::3].reshape(count, 20, 1)
        kernels, expansions = (np.eye(3)[blocks[:, :, column]] * runs for column in (0, 1))
        resolutions = np.eye(8)[genes[:, 0] + 3]
        parts = (kernels.reshape(count, 60), expansions.reshape(count, 60), resolutions)
        return np.concatenate(parts, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MacroSpace:
    """NAS-Bench-Macro on CIFAR-10: FLOPs and accuracy. A measurement is one of three trainings, truth their mean."""

    accuracies: Floats
    """By network in the order of its genes, and by training, (6561, 3)."""
    flops: Floats
    rng: np.random.Generator
    choices: tuple[int, ...] = (3,) * 8

    @classmethod
    def read(cls, data: Path, seed: int) -> "MacroSpace":
        """Read the table; the seed chooses the training of each measurement."""
        rows = json.loads((data / MACRO).read_text(encoding="utf-8"))
        ordered = [rows[key] for key in sorted(rows)]
        accuracies = np.array([row["test_acc"] for row in ordered])
        flops = np.array([row["flops"] for row in ordered]) / MILLION
        return cls(accuracies, flops, np.random.default_rng([seed, 2]))

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        return np.ones(genes.shape, bool)

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """In two places an identity before a layer is the same network as one after it."""
        genes = genes.copy()
        for first, second in ((3, 4), (6, 7)):
            swapped = genes[:, first] == 0
            genes[swapped, first], genes[swapped, second] = genes[swapped, second], 0
        return genes

    def costs(self, genes: Genes) -> Floats:
        return self.flops[self._rows(genes)][:, None]

    def traits(self, genes: Genes) -> Sequence[Floats]:
        return [self.costs(genes)]

    def anchors(self) -> Genes:
        return np.array([[0] * 8, [2] * 8])

    def nested(self, body: NDArray[np.int64]) -> Genes:
        return body[None]

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        for place, row in enumerate(self._rows(bodies)):
            yield place, -self.accuracies[row, self.rng.integers(3, size=1)]

    def true(self, genes: Genes) -> Floats:
        return -self.accuracies[self._rows(genes)].mean(1)

    @cached_property
    def front(self) -> Floats:
        """The exact front: 35 networks."""
        every = np.stack(np.unravel_index(np.arange(len(self.flops)), self.choices), 1)
        points = objectives(self, np.unique(self.repair(every, self.rng), axis=0))
        return points[on_front(points)]

    @property
    def reference(self) -> Floats:
        """The worst values on the front, and a hundredth of its extent."""
        return self.front.max(0) + 0.01 * np.ptp(self.front, 0)

    @property
    def best(self) -> float:
        return hypervolume(self.front, self.reference)

    @property
    def target(self) -> float:
        return 0.99 * self.best

    def _rows(self, genes: Genes) -> NDArray[np.int64]:
        return np.ravel_multi_index(tuple(genes.T), self.choices)


def objectives(problem: Table, genes: Genes) -> Floats:
    """True loss and cost, (N, 2)."""
    return np.concatenate([problem.true(genes)[:, None], problem.costs(genes)], 1)


# Each method yields what it measures, in order, in groups of any size.
Method = Callable[[Table, int, int], Iterator[Genes]]


DEFAULTS = SearchSettings()


def by_engine(problem: Table, measurements: int, seed: int, changed: SearchSettings = DEFAULTS) -> Iterator[Genes]:
    """The engine of `ofav2 search`, with its default settings, unless they are changed, but the reference point."""
    settings = replace(changed, worst_loss=float(problem.reference[0]))
    for event in search(problem, settings, measurements=measurements, seed=seed):
        if isinstance(event, Picked):
            yield event.bodies


def by_chance(problem: Table, measurements: int, seed: int) -> Iterator[Genes]:
    """Different networks with uniform genes."""
    yield distinct(problem, np.random.default_rng([seed, 3]), measurements)


def by_nsga2(problem: Table, measurements: int, seed: int) -> Iterator[Genes]:
    """pymoo's NSGA-II on measurements, population 50, with the operators that DyNAS-T gives it."""
    measured: list[Genes] = []

    def measure(genes: Genes) -> Floats:
        measured.append(genes)
        return _measured(problem, genes)

    algorithm = _nsga2(problem, measure, distinct(problem, np.random.default_rng([seed, 4]), 50), seed)
    done = 0
    for _ in range(-(-measurements // 50)):
        algorithm.next()
        yield from measured[done:]
        done = len(measured)


def by_linas(problem: Table, measurements: int, seed: int) -> Iterator[Genes]:
    """LINAS (Cummings et al., arXiv 2205.10358): rounds of 50, the best of NSGA-II on a ridge regression's predictions.

    The inner search has 200 generations of 50; costs are exact.
    """
    rng = np.random.default_rng([seed, 5])
    chosen = distinct(problem, rng, 50)
    known = chosen[:0]
    losses = np.zeros(0)
    while len(chosen):
        losses = np.concatenate([losses, *_losses(problem, chosen)])
        known = np.concatenate([known, chosen])
        yield chosen
        model = Ridge().fit(_one_hot(problem, known), losses)

        def predict(genes: Genes, model: Ridge = model) -> Floats:
            return np.concatenate([model.predict(_one_hot(problem, genes))[:, None], problem.costs(genes)], 1)

        algorithm = _nsga2(problem, predict, distinct(problem, rng, 50), int(rng.integers(2**31)))
        seen = {row.tobytes() for row in known}
        new: list[NDArray[np.int64]] = []
        for _ in range(200):
            algorithm.next()
        for row in algorithm.pop.get("X").astype(np.int64):
            if row.tobytes() not in seen:
                seen.add(row.tobytes())
                new.append(row)
        chosen = np.array(new[: min(50, measurements - len(known))], np.int64)


def by_tpe(problem: Table, measurements: int, seed: int) -> Iterator[Genes]:
    """optuna's multi-objective TPE with its defaults; a repeated network counts, as it is measured again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed))
    rng = np.random.default_rng([seed, 6])
    for _ in range(measurements):
        trial = study.ask()
        drawn = [trial.suggest_int(f"gene {i}", 0, count - 1) for i, count in enumerate(problem.choices)]
        genes = problem.repair(np.array([drawn], np.int64), rng)
        study.tell(trial, _measured(problem, genes)[0].tolist())
        yield genes


METHODS: Mapping[str, Method] = MappingProxyType(
    {"ofav2": by_engine, "random": by_chance, "nsga2": by_nsga2, "linas": by_linas, "tpe": by_tpe}
)
PROBLEMS: Mapping[str, Callable[[Path, int], Table]] = MappingProxyType(
    {"ofa": OfaSpace.read, "macro": MacroSpace.read}
)


def distinct(problem: Table, rng: np.random.Generator, count: int) -> Genes:
    """Different networks (count, genes) with uniform genes."""
    found: dict[bytes, NDArray[np.int64]] = {}
    while len(found) < count:
        drawn = problem.repair(rng.integers(0, problem.choices, (count, len(problem.choices))), rng)
        found.update({row.tobytes(): row for row in drawn})
    return np.array(list(found.values())[:count])


def _measured(problem: Table, genes: Genes) -> Floats:
    return np.concatenate([np.array(_losses(problem, genes)), problem.costs(genes)], 1)


def _losses(problem: Table, genes: Genes) -> list[Floats]:
    return [losses for _, losses in problem.measure(genes)]


def _one_hot(problem: Table, genes: Genes) -> Floats:
    return one_hot(genes, problem.active(genes), problem.choices)


def _nsga2(problem: Table, evaluate: Callable[[Genes], Floats], start: Genes, seed: int) -> NSGA2:
    """A set-up NSGA-II whose networks are canonical when they are compared and evaluated."""

    class Canonical(RoundingRepair):  # type: ignore[misc]
        def _do(self, inner: Any, x: Any, **more: Any) -> Genes:
            return problem.repair(super()._do(inner, x, **more).astype(np.int64), np.random.default_rng(0))

    class Inner(PymooProblem):  # type: ignore[misc]
        def _evaluate(self, x: Genes, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = evaluate(x.astype(np.int64))

    highest = np.array(problem.choices) - 1
    algorithm = NSGA2(
        pop_size=len(start),
        sampling=start,
        crossover=TwoPointCrossover(prob=0.9),
        mutation=PM(prob=1.0, eta=1.0, repair=Canonical()),
        repair=Canonical(),
        eliminate_duplicates=DefaultDuplicateElimination(),
    )
    inner = Inner(n_var=len(highest), n_obj=2, xl=0, xu=highest, vtype=int)
    algorithm.setup(inner, termination=("n_gen", 10**6), seed=seed, verbose=False)
    return algorithm


@dataclass(frozen=True)
class Outcome:
    """One search."""

    shares: Mapping[int, float]
    """Share of the best known hypervolume by measurements."""
    to_target: int | None
    """Measurements to the problem's target; None if it was not reached."""
    repeats: int
    """Measurements of a network that was measured before."""
    seconds: float
    """Processor time."""


def run(problem: Table, method: Method, measurements: int, seed: int) -> Outcome:
    """Run one search, and score what it measured."""
    started = time.process_time()
    genes = np.concatenate(list(method(problem, measurements, seed)))[:measurements]
    seconds = time.process_time() - started
    points, reference, best = objectives(problem, genes), problem.reference, problem.best
    volumes = {count: hypervolume(points[:count], reference) for count in range(1, len(genes) + 1)}
    reached = (count for count, volume in volumes.items() if volume >= problem.target)
    return Outcome(
        {count: volumes[min(count, len(genes))] / best for count in _shown(measurements)},
        next(reached, None),
        len(genes) - len(np.unique(genes, axis=0)),
        seconds,
    )


def kept(path: Path, measure: Callable[[], Outcome]) -> Outcome:
    """Read an outcome; if there is none yet, measure it and write it."""
    if path.exists():
        values = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(**{**values, "shares": {int(count): share for count, share in values["shares"].items()}})
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome = measure()
    files.write_text(path, json.dumps(asdict(outcome)) + "\n")
    return outcome


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the two files")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--measurements", type=int, default=max(CHECKPOINTS))
    parser.add_argument("--settings", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the engine")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep outcomes here, and do not search again for them"
    )
    chosen = parser.parse_args(argv)
    methods: dict[str, Method] = {**METHODS, "ofav2": partial(by_engine, changed=read_settings(chosen.settings))}
    for problem in chosen.problems:
        rows = []
        for name in chosen.methods:
            outcomes = []
            for seed in range(chosen.seeds):
                search_it = partial(run, PROBLEMS[problem](chosen.data, seed), methods[name], chosen.measurements, seed)
                parts = (problem, name, *(chosen.settings if name == "ofav2" else ()), chosen.measurements, seed)
                path = chosen.keep and chosen.keep / f"{'-'.join(map(str, parts))}.json"
                outcomes.append(kept(path, search_it) if path else search_it())
            rows.append((name, *summary(outcomes)))
        title = f"{problem}: share of the best known hypervolume, median of {chosen.seeds} seeds (quartiles)"
        columns = ("method", *map(str, _shown(chosen.measurements)), "to target", "repeats", "seconds")
        console.show(table(title, columns, rows))


def read_settings(texts: Sequence[str]) -> SearchSettings:
    """The engine's settings, changed as in `batch=25`."""
    kinds = {one.name: type(getattr(DEFAULTS, one.name)) for one in fields(DEFAULTS)}
    pairs = (text.split("=", 1) for text in texts)
    return replace(DEFAULTS, **{name: kinds[name](value) for name, value in pairs})


def summary(outcomes: Sequence[Outcome]) -> tuple[object, ...]:
    """The cells of a method's row."""
    cells: list[object] = []
    for count in outcomes[0].shares:
        low, middle, high = (100 * np.quantile([one.shares[count] for one in outcomes], q) for q in (0.25, 0.5, 0.75))
        cells.append(f"{middle:.1f} ({low:.1f}-{high:.1f})")
    reached = sorted(one.to_target or np.inf for one in outcomes)
    middle = float(np.median(reached))
    cells.append(f"{middle:.0f}" if np.isfinite(middle) else f"over {max(outcomes[0].shares)}")
    cells.append(f"{np.median([one.repeats for one in outcomes]):.0f}")
    return (*cells, f"{np.median([one.seconds for one in outcomes]):.1f}")


def _shown(measurements: int) -> list[int]:
    return sorted({count for count in (*CHECKPOINTS, measurements) if count <= measurements})


if __name__ == "__main__":
    command_line(main)
