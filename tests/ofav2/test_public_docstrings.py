"""docs/python.md promises that docstrings of public names say what goes in, what comes out, and what fields hold."""

import ast
import dataclasses
import inspect
import re
from types import NoneType
from typing import get_type_hints

import pytest

import ofav2

FUNCTIONS = [name for name in ofav2.__all__ if inspect.isfunction(getattr(ofav2, name))]
DATACLASSES = [name for name in ofav2.__all__ if dataclasses.is_dataclass(getattr(ofav2, name))]


def sections(function: object) -> dict[str, str]:
    """The sections of a Google-style docstring by title."""
    parts = re.split(r"^(\w+):$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_documents_its_parameters_and_what_it_returns(name: str) -> None:
    function = getattr(ofav2, name)
    found = sections(function)
    documented = re.findall(r"^    (\w+): \S", found.get("Args", ""), flags=re.MULTILINE)
    assert documented == list(inspect.signature(function).parameters)
    if get_type_hints(function)["return"] is not NoneType:
        assert found.get("Returns", found.get("Yields", "")).strip(), "nothing says what is returned"


@pytest.mark.parametrize("name", DATACLASSES)
def test_every_field_of_a_dataclass_has_a_docstring(name: str) -> None:
    (definition,) = ast.parse(inspect.getsource(getattr(ofav2, name))).body
    assert isinstance(definition, ast.ClassDef)
    fields = {field.name for field in dataclasses.fields(getattr(ofav2, name))}
    bare = [
        ast.unparse(statement.target)
        for statement, after in zip(definition.body, [*definition.body[1:], None], strict=True)
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) in fields
        if not (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
    ]
    assert not bare, "fields without a docstring below them"
