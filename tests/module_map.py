"""Write `docs/modules.md`, the list of all modules, from the tree itself: `python -m tests.module_map`.

Packages stand in the order of `tests/test_architecture.py`, and inside a package a module stands below all that it
imports, so the page reads from the ground up.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.test_architecture import LAYERS, ROOT, import_graph, sources

PAGE = ROOT / "docs" / "modules.md"
HEAD = """\
# Modules

Every module with the first line of its docstring; `python -m tests.module_map` writes this page from the sources. A
module imports only from modules above it. [Architecture](architecture.md) says why the boundaries are where they are.
"""


def render() -> str:
    """Return the page's text."""
    return "\n".join([HEAD, *(line for package in packages() for line in _table(package)), ""])


def packages() -> Iterator[tuple[str, list[str]]]:
    """Yield each package's path with its modules' paths, lowest first."""
    paths = [path for path, _ in sources() if not path.startswith("recipes/")]
    graph = import_graph((path, tree) for path, tree in sources())
    position = {name: number for number, name in enumerate(_lowest_first(graph))}
    of_package: dict[str, list[str]] = {}
    for path in paths:
        if not path.endswith("__init__.py") or path.count("/") == 1:
            of_package.setdefault(str(Path(path).parent), []).append(path)
    for package in sorted(of_package, key=_rank):
        yield package, sorted(of_package[package], key=lambda path: position[_module(path)])


def _lowest_first(graph: dict[str, set[str]]) -> Iterator[str]:
    """Yield modules so that each comes after all that it imports; of those that could come next, by name."""
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        yield from ready
        sorter.done(*ready)


def _rank(package: str) -> tuple[int, int, str]:
    first, _, rest = package.partition("/")
    top = ("supernets", "distill", "ofav2").index(first)
    return top, LAYERS.index(rest.split("/")[0]) if rest else -1, package


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _table(package: tuple[str, list[str]]) -> Iterator[str]:
    folder, paths = package
    yield f"## `{folder}/`"
    yield ""
    init = ROOT / folder / "__init__.py"
    yield _first_line(init)
    yield ""
    yield "| module | |"
    yield "|---|---|"
    for path in paths:
        if not path.endswith("__init__.py"):
            yield f"| `{Path(path).name}` | {_first_line(ROOT / path)} |"
    yield ""


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring, f"{file} has no docstring"
    return docstring.split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
