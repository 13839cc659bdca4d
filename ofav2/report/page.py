"""Write one self-contained HTML file: templates, values as JSON, and the plotting library."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from ofav2 import files
from ofav2.errors import UserError
from ofav2.messages import duration


def write_page(out: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all.

    Args:
        out: The file; one that is there is replaced.
        template: Name of a template among this package's assets.
        values: What it shows; `now` is added, when it was made. All text is escaped.

    Raises:
        UserError: If the file can't be there.
    """
    if out.is_dir():
        raise UserError(f"output file ({out}) is a folder: give a file name, such as {out / 'report.html'}")
    if not out.parent.is_dir():
        raise UserError(f"output file ({out}): folder {out.parent} does not exist; make it, or name another file")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"output file ({out}): folder {out.parent} can't be written to; name another file with --out")
    files.write_text(out, _render(template, {**values, "now": datetime.now(UTC).isoformat(timespec="minutes")}))


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, count=count, duration=duration, when=when)
    # Only files of this package and of plotly go in unescaped.
    return environment.get_template(template).render(**values, asset=_asset, plotly=get_plotlyjs)


def _asset(name: str) -> str:
    return resources.files("ofav2.report").joinpath("assets", name).read_text(encoding="utf-8")


def percent(share: float | None) -> str:
    """Return a share (0..1) as a person reads it: `98.9 %`, a dash for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def count(number: float) -> str:
    """Return a large number in three digits: `10.3 M`; from 10¹² on as a power of ten."""
    # As it is shown, or 999,999 would be 1e+03 k.
    rounded = float(f"{number:.3g}")
    for size, unit in ((1e12, None), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if rounded >= size:
            return f"{rounded / size:.3g}{unit}" if unit else _power(number)
    return f"{number:,.0f}"


def _power(number: float) -> str:
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def when(iso: str) -> str:
    """Return a time stamp as a person reads it, in its own time zone: `22 Nov 2026, 17:50 UTC`."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%b %Y, %H:%M} {moment.tzname() or ''}".strip()
