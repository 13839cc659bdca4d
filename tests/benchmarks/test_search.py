"""The benchmark of search: problems are what they say, every method measures what it may, and a table comes out."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import MACRO, METHODS, OFA, MacroSpace, OfaSpace, main, objectives, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random numbers in the form of the two files."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    # As in the real table, larger blocks are better and cost more; two identities are one network.
    rows = {}
    for key in product((0, 1, 2), repeat=8):
        own = list(key)
        for first, second in ((3, 4), (6, 7)):
            if own[first] == 0:
                own[first], own[second] = own[second], 0
        score, cost = (np.dot(own, weights) for weights in (range(1, 9), range(9, 1, -1)))
        accuracies = 50 + score + np.random.default_rng(own).normal(size=3)
        rows["".join(map(str, key))] = {"test_acc": accuracies.tolist(), "flops": 1e6 * (5 + float(cost))}
    (folder / MACRO).write_text(json.dumps(rows), encoding="utf-8")
    sizes = ((128, 8), (8, 8), (8, 8), (8, 1))
    arrays = {
        f"{2 * i}.{kind}": rng.normal(size=shape).astype(np.float32) / 10
        for i, (inner, outer) in enumerate(sizes)
        for kind, shape in (("weight", (outer, inner)), ("bias", (outer,)))
    }
    np.savez(folder / OFA, **arrays)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_measures_different_canonical_networks_up_to_its_budget(name: str, data: Path) -> None:
    problem = MacroSpace.read(data, 0)
    genes = np.concatenate(list(METHODS[name](problem, 60, 0)))[:60]
    assert len(genes) == 60
    assert (problem.repair(genes, np.random.default_rng(0)) == genes).all()
    repeats = len(genes) - len(np.unique(genes, axis=0))
    assert repeats == 0 or name == "tpe"


def test_a_search_is_scored_without_noise(data: Path) -> None:
    problem = MacroSpace.read(data, 0)
    outcome = run(problem, METHODS["random"], 60, 0)
    assert 0 < outcome.shares[50] <= outcome.shares[60] <= 1
    assert problem.best > 0
    assert len(np.unique(np.array(list(problem.measure(problem.anchors())), dtype=object)[:, 1])) == 2


def test_inputs_of_the_accuracy_predictor_have_a_column_per_choice(data: Path) -> None:
    problem = OfaSpace.read(data, 0)
    genes = problem.space
    subnet = genes.space.uniform(kernel=5, expand=4, depth=3, resolution=192)
    vector = genes.encode(subnet)[None]
    (row,) = problem._inputs(vector)
    blocks = np.zeros((20, 3))
    blocks[[block for block in range(20) if block % 4 < 3], 1] = 1
    resolution = np.eye(8)[(192 - 112) // 16]
    assert row.tolist() == [*blocks.ravel(), *blocks.ravel(), *resolution]
    assert objectives(problem, vector)[0, 1] == genes.model.price(subnet).macs / 1e6


def test_a_search_whose_outcome_is_kept_is_not_run_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [str(data), "--problems", "macro", "--methods", "random", "--measurements", "55", "--keep", str(tmp_path)]
    main([*asked, "--seeds", "2"])
    printed = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"macro-random-55-{seed}.json" for seed in range(2)]
    monkeypatch.setattr("benchmarks.search.run", pytest.fail)
    main([*asked, "--seeds", "2"])
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_the_table_has_a_row_for_each_method(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(data), "--problems", "macro", "--methods", "random", "linas", "--seeds", "2", "--measurements", "55"])
    printed = capsys.readouterr().out
    assert "macro: share of the best known hypervolume, median of 2 seeds" in printed
    assert "random" in printed
    assert "linas" in printed
