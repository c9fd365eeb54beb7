"""The settings in groups, each with its help, as their dataclasses hold them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from settings.config import Config


class Group(NamedTuple):
    """Settings that belong together: what they are about, and each one's help by its name."""

    title: str
    settings: dict[str, str]


def groups() -> Iterator[Group]:
    """All settings in the order of `Config`: a group is one of the dataclasses that it is made of."""
    for owner in reversed(Config.__mro__):
        if inspect.get_annotations(owner):
            yield Group((inspect.getdoc(owner) or "").removesuffix("."), _texts(owner))


def _texts(owner: type) -> dict[str, str]:
    """The string below each field of a class, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text, ast.Expr), f"{field.target.id} has no help below it"
            texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts
