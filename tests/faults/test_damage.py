"""Files are damaged at random, thousands of times, and read; each ends as read or refused in one line.

The quick tests in tests/ofav2/test_damage.py and test_decoding.py try some hundreds of the same. The counts go to
build/faults/damage.md and .json; docs/reliability.md quotes them.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import ofav2
from ofav2.cli.main import main
from tests.ofav2 import tiny
from tests.ofav2.damaging import damaged, files_of
from tests.ofav2.data.test_decoding import FORMATS, damage, decoded, noise, saved
from tests.ofav2.fuzzing import accepted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("damage")]

SEED = 1918
SUMMARY = Path(__file__).resolve().parents[2] / "build" / "faults"
IMAGES = 1000
"""Damaged images of each kind."""

Counts = dict[str, Counter[str]]


@pytest.fixture(scope="module")
def counts() -> Iterator[Counts]:
    """What became of damaged files, by what read them."""
    kept: Counts = {}
    yield kept
    SUMMARY.mkdir(parents=True, exist_ok=True)
    rows = [f"| {what} | {found.total()} | {found['read']} | {found['refused']} |" for what, found in kept.items()]
    table = "\n".join(["| read by | damaged | read | refused in one line |", "|---|---|---|---|", *rows, ""])
    (SUMMARY / "damage.md").write_text(table)
    (SUMMARY / "damage.json").write_text(json.dumps({"seed": SEED, "ended": kept}, indent=2) + "\n")
    print(f"\n{table}\nwritten to {SUMMARY}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to damage; what is damaged is put back."""
    parent = tmp_path_factory.mktemp("run")
    return ofav2.train(tiny.written(parent, tiny.SIX), run_dir=parent / "run").folder


@pytest.fixture(scope="module")
def network(run: Path) -> Path:
    """A network with two exits, taken out of the run."""
    opened = ofav2.open_run(run)
    ofav2.extract(opened, tiny.middle(opened.loaded.net.space), run.parent / "network", exits=(2, 3), formats=())
    return run.parent / "network"


def try_each(
    folder: Path, number: int, trials: int, read: Callable[[], bool], left_out: Sequence[str] = ()
) -> Counter[str]:
    """Damage files of a folder one at a time, and count whether each could be read; an unforeseen error fails."""
    rng = np.random.default_rng([SEED, number])
    SUMMARY.mkdir(parents=True, exist_ok=True)
    found: Counter[str] = Counter()
    chosen = [path for path in files_of(folder) if path.suffix not in left_out]
    for trial in range(trials):
        path = chosen[int(rng.integers(len(chosen)))]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            found["read" if read() else "refused"] += 1
        except Exception:
            shutil.copy(path, SUMMARY / f"damaged-{number}-{trial}-{path.name}")
            raise
        finally:
            path.write_bytes(whole)
    return found


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Callable[[], bool]:
    """Run a command, whose end must be 0, or 2 with one line that no terminal obeys."""

    def run() -> bool:
        code = main(arguments)
        said = capsys.readouterr()
        text = said.out + said.err
        assert code in (0, 2), text
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        assert code == 0 or sum(line.startswith("ofav2: ") for line in text.splitlines()) == 1, text
        return code == 0

    return run


def test_damaged_runs(run: Path, counts: Counts, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, other = str(tmp_path / "page.html"), shutil.copytree(run, tmp_path / "other")
    smallest = tmp_path / "smallest.json"
    smallest.write_text(ofav2.load_supernet(run).space.smallest().to_json())
    weights = (".safetensors",)
    for number, (trials, *arguments) in enumerate(
        (
            (200, "report", str(run), "--out", page),
            (30, "compare", str(run), str(other), "--out", page),
            (20, "evaluate", str(run), "--subnet", str(smallest)),
        )
    ):
        left_out = weights if arguments[0] != "evaluate" else ()
        counts[arguments[0]] = try_each(run, number, trials, command(capsys, *arguments), left_out)


def test_damaged_networks(network: Path, counts: Counts, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    counts["load_subnet"] = try_each(network, 3, 300, lambda: accepted(lambda: ofav2.load_subnet(network)) is not None)
    out = tmp_path / "tuned"

    def finetune() -> bool:
        shutil.rmtree(out, ignore_errors=True)
        settings = ("finetune.epochs=1", "run.device=cpu", "run.threads=1")
        return command(capsys, "finetune", str(network), *settings, "--formats", "none", "--out", str(out))()

    counts["finetune"] = try_each(network, 4, 10, finetune)


def test_damaged_sub_networks(run: Path, counts: Counts, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    subnet = tmp_path / "files" / "subnet.json"
    subnet.write_text(ofav2.load_supernet(run).space.smallest().to_json())
    counts["evaluate --subnet"] = try_each(
        tmp_path / "files", 5, 20, command(capsys, "evaluate", str(run), "--subnet", str(subnet))
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", FORMATS)
def test_damaged_images(case: str, counts: Counts) -> None:
    """One that ends the process ends all tests."""
    kind, mode, options = FORMATS[case]
    content = saved(noise(40, 30), kind, mode, **options)
    rng = np.random.default_rng([SEED, 6, sorted(FORMATS).index(case)])
    found: Counter[str] = Counter()
    for _ in range(IMAGES):
        image, told = decoded(damage(content, rng))
        assert image is not None or (told and "\n" not in told)
        found["refused" if image is None else "read"] += 1
    counts[f"decode, {case}"] = found
