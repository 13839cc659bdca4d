"""Score the teachers of a run at every resolution: with the statistics of the largest one, and with their own.

python -m benchmarks.teachers RUN       # docs/log/2026-11-26-teachers.md has the results on digits
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import ofav2
from benchmarks.sides import command_line
from ofav2.config import recipe
from ofav2.evaluation.opened_run import OpenedRun, load_run
from ofav2.runs import folder
from ofav2.tables import table
from ofav2.training.phases import make_plan
from ofav2.training.teacher import largest_networks

COLUMNS = ("phase", "pixels", "statistics of the largest", "its own")


def scores(path: Path, run: OpenedRun) -> Iterator[tuple[str, int, float, float]]:
    """Yield phase, side in pixels, and the validation score of the ensemble of exits with both statistics."""
    config, evaluator = recipe.load(str(path / folder.RECIPE)), run.evaluator
    plan = make_plan(config.phases, config.teacher, run.loaded.record.space, steps_per_epoch=1)
    for phase in plan.phases[: len(run.loaded.record.phases)]:
        net = load_run(path, phase.name).net
        networks = largest_networks(evaluator.runtime.place(net), evaluator)
        for side, own in networks.items():
            first, second = (
                evaluator.ensemble_score(module, phase.weights.trained.ensemble, side, run.data.val)
                for module in (networks[max(networks)], own)
            )
            yield phase.name, side, first, second


def main(argv: Sequence[str] | None = None) -> None:
    """Show the table of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    path = parser.parse_args(argv).run
    run = ofav2.open_run(path)
    metric = run.evaluator.task.metrics[0]
    rows = [
        (phase, str(side), metric.show(largest), metric.show(own)) for phase, side, largest, own in scores(path, run)
    ]
    print(table(f"teachers, validation {metric.name}", COLUMNS, rows))


if __name__ == "__main__":
    command_line(main)
