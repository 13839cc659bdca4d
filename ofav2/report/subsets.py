"""Write the page of a pruned network: all subsets of exits, their accuracy against cost, and how often exits agree."""

from dataclasses import asdict
from pathlib import Path

from ofav2.exits.prune import PruneStudy
from ofav2.report.page import write_page

PAGE = "pruning.html"


def write_subsets_page(study: PruneStudy, out: Path) -> None:
    """Write the page.

    Args:
        study: What `prune_exits` found.
        out: The file; one that is there is replaced.

    Raises:
        UserError: If the file can't be there.
    """
    table, pruning = study.table, study.pruning
    values = {
        "title": f"Exits of {study.name} · ofav2",
        "study": study,
        "pruning": pruning,
        "payload": {
            "subsets": [
                {
                    "exits": table.named(index),
                    "top1": table.top1(index),
                    "top5": table.top5(index),
                    "macs": table.costs[index].macs,
                    "params": table.costs[index].params,
                    "memory": table.costs[index].memory,
                    "nanoseconds": study.nanoseconds[index],
                }
                for index in range(len(table.choices))
            ],
            "front": table.front(),
            "chosen": study.choice.index,
            "whole": study.whole,
            "whole_name": study.whole_name,
            "last": study.last,
            "batches": pruning.batches,
            "exits": asdict(study.agreement),
        },
    }
    write_page(out, "subsets.html", values)
