"""Packages of others, as pip installs them."""

from pathlib import Path


def describe_package(site: Path, name: str, entry_points: str) -> None:
    """Make a package's entry points known in a folder of the import path.

    Args:
        site: The folder, beside whose modules the description lies.
        name: The package's name.
        entry_points: A group and its entries, such as `[ofav2.tasks]`, a line break, and `depth = my_package:make`.
    """
    described = site / f"{name}-1.0.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (described / "entry_points.txt").write_text(f"{entry_points}\n", encoding="utf-8")
