"""Write `docs/python.md`, the public names of `ofav2`, from their docstrings: `python -m tests.api_page`."""

import inspect

import ofav2
from tests.test_architecture import ROOT

PAGE = ROOT / "docs" / "python.md"
HEAD = """\
# What is in the Python API?

Every public name of `ofav2`, with the first sentence of its docstring. `help(ofav2.train)` prints the whole docstring:
arguments with shapes and units, what is returned, and what is raised. `python -m tests.api_page` writes this page.

What a user can mend is a `ValueError`: `UserError` with `RunError`, and of the packages below `SpaceError`,
`GraphError` and `DistillError`.

The packages `supernets` and `distill` can be used alone; `help(supernets)` and `help(distill)` list their names.
"""


def render() -> str:
    """Return the page's text."""
    values = {name: getattr(ofav2, name) for name in sorted(ofav2.__all__, key=str.lower)}
    functions = [name for name, value in values.items() if inspect.isfunction(value)]
    errors = [name for name, value in values.items() if inspect.isclass(value) and issubclass(value, Exception)]
    classes = [name for name in values if name not in functions and name not in errors]
    lines = [HEAD]
    for title, names in (("Functions", functions), ("Classes", classes), ("Errors", errors)):
        lines += [f"## {title}", "", "| name | |", "|---|---|"]
        lines += [f"| `{name}{_parameters(values[name])}` | {_first_line(values[name])} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def _parameters(value: object) -> str:
    """Return the names of a function's parameters, `=` after those with a default; nothing for a class."""
    if not inspect.isfunction(value):
        return ""
    parameters = inspect.signature(value).parameters.values()
    return f"({', '.join(one.name if one.default is one.empty else f'{one.name}=' for one in parameters)})"


def _first_line(value: object) -> str:
    docstring = inspect.getdoc(value)
    assert docstring, f"{value} has no docstring"
    return docstring.split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
