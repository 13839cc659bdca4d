"""Write the page of a run or of a search: `ofav2 report`."""

from pathlib import Path

from ofav2.nas.search_snapshot import is_search, read_search_snapshot
from ofav2.report.page import write_page
from ofav2.report.search import search_page
from ofav2.report.single import run_page
from ofav2.runs.snapshot import read_snapshot

REPORT = "report.html"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run or of a search: what it is, how it went, what came out.

    It may still be under way, or have broken off: the page shows what there is.

    Args:
        folder: A run's folder, or a search's.
        out: The file to write, replaced if it is there; None is `report.html` in the folder.

    Returns:
        The page's path.

    Raises:
        RunError: If the folder is neither, or a file in it is damaged.
        UserError: If the page can't be written there.
    """
    target = Path(folder) / REPORT if out is None else Path(out)
    if is_search(folder):
        write_page(target, "search.html", search_page(read_search_snapshot(folder)))
    else:
        write_page(target, "report.html", run_page(read_snapshot(folder)))
    return target
