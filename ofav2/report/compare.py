"""Compare runs, or searches: `ofav2 compare`."""

from collections.abc import Sequence
from pathlib import Path

from ofav2.errors import UserError
from ofav2.messages import refuse_text
from ofav2.nas.search_snapshot import is_search, read_search_snapshot
from ofav2.report.comparison import Comparison
from ofav2.report.searches import compare_searches
from ofav2.report.several import compare_snapshots
from ofav2.runs.snapshot import read_snapshot

COMPARISON = "compare.html"


def compare_runs(runs: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """Compare runs, or searches: what differs, key results, and a page with their fronts on one plot.

    Args:
        runs: Two folders or more, all of runs or all of searches.
        out: The page to write, replaced if it is there; None is `compare.html` in the working folder, or where that is
            there `compare-2.html`, and so on.

    Returns:
        What the page shows, as text: settings that differ, key results, and warnings; and the page's path.

    Raises:
        RunError: If a folder is no run or search, or damaged.
        UserError: If there are fewer than two different ones, they can't be compared, or the page can't be written.
    """
    refuse_text("runs", runs)
    different = {Path(run).resolve(): run for run in runs}
    if len(different) < 2:
        raise UserError(f"runs ({', '.join(map(str, runs))}): comparing takes two different run folders or more")
    page = _free_page() if out is None else Path(out)
    folders = tuple(different.values())
    searches = [folder for folder in folders if is_search(folder)]
    if not searches:
        return compare_snapshots([read_snapshot(folder) for folder in folders], page)
    if len(searches) < len(folders):
        raise UserError(
            f"{searches[0]} is a search, and not all others are: compare runs with runs, or searches with searches"
        )
    return compare_searches([read_search_snapshot(folder) for folder in folders], page)


def _free_page() -> Path:
    """Return the first name in the working folder that no file has."""
    names = (COMPARISON, *(COMPARISON.replace(".", f"-{number}.") for number in range(2, 10_000)))
    return next((Path(name) for name in names if not Path(name).exists()), Path(COMPARISON))
