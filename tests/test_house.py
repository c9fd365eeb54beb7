"""The rooms of the project: imports only go down its floors, and none go round in a circle."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

from common.sources import FOLDERS, ROOT

FLOORS = {
    "train": 10,
    "training": 9, "evaluate": 9,
    "agent": 8, "plot": 8,
    "evaluation": 7, "algorithm": 7,
    "learning": 6, "cluster": 6,
    "model": 5,
    "networks": 4,
    "settings": 3, "distributions": 3,
    "envs": 2,
    "rollout": 1, "common": 1, "parl_compat": 1,
}  # fmt: skip
PROJECT = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]
}


def imports_of(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever in it the statement stands."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names} & PROJECT.keys()
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:  # `from room import module`, or a name of a module
                whole = f"{node.module}.{alias.name}"
                imported |= {whole if whole in PROJECT else node.module} & PROJECT.keys()
    return imported


IMPORTS = {module: imports_of(path) for module, path in PROJECT.items()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in PROJECT} == FLOORS.keys()


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_the_floors_below(room):
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room_of(module) == room
        and room_of(other) != room
        and FLOORS[room_of(other)] >= FLOORS[room]
    ]
    assert upward == []


def test_no_imports_go_round_in_a_circle():
    order = graphlib.TopologicalSorter(IMPORTS).static_order()  # CycleError names the circle
    assert set(order) == PROJECT.keys()


def test_the_readme_has_the_rooms_from_the_highest_floor_to_the_lowest():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Layout of the code") :]
    rows = [
        re.findall(r"`(\w+)(?:/|\.py)`", row) for row in re.findall(r"^\| (`[^|]+)", table, re.M)
    ]
    listed = [room for row in rows for room in row if room in FLOORS]
    assert set(listed) == FLOORS.keys()
    floors = [FLOORS[room] for room in listed]
    assert floors == sorted(floors, reverse=True)
