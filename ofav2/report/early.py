"""Write the page of a network's early exits: accuracy against cost and time, and exits taken."""

from dataclasses import asdict
from pathlib import Path

from ofav2.exits.calibrate import CalibrationStudy
from ofav2.report.page import write_page

PAGE = "early_exits.html"
_POINTS = 400


def write_early_page(study: CalibrationStudy, out: Path) -> None:
    """Write the page.

    Args:
        study: What `calibrate_exits` found.
        out: The file; one that is there is replaced.

    Raises:
        UserError: If the file can't be there.
    """
    measured, curve, shown = study.record.measured, study.curve, study.curve.spread(_POINTS)
    values = {
        "title": f"Early exits of {study.name} · ofav2",
        "study": study,
        "record": study.record,
        "batches": measured.batches,
        "payload": {
            "exits": study.record.exits,
            "rows": [asdict(row) for row in measured.rows],
            "chosen": study.chosen,
            "batches": measured.batches,
            "curve": {
                "thresholds": curve.thresholds[shown].tolist(),
                "macs": curve.mean_macs[shown].tolist(),
                "top1": curve.top1[shown].tolist(),
                "shares": curve.shares[shown].tolist(),
            },
        },
    }
    write_page(out, "early.html", values)
