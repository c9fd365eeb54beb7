"""The README's translations say what it says, as far as no knowledge of their languages is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = ROOT / "README.md"
TRANSLATIONS = [
    ROOT / "docs" / "translations" / f"README.{name}.md" for name in ("de", "es", "ru", "zh")
]
_CODE = re.compile(r"`([^`]+)`")
# thousands are separated by a comma, a point or a space that does not break
_NUMBER = re.compile(r"\d+(?:[.,\u00a0]\d+)*")
_SEPARATOR = re.compile(r"[.,\u00a0](?=\d{3}(?!\d))")


def commands(page: Path) -> list[str]:
    """The lines of code blocks, without their comments."""
    lines = re.findall(r"^    (\S.*)$", page.read_text(), re.M)
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def links(page: Path) -> list[str]:
    """Where the links lead, in their order."""
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text())
    return [t if "://" in t else str((page.parent / t).resolve()) for t in targets]


def tables(page: Path) -> list[tuple[list[str], list[str]]]:
    """The code and the numbers of each row; a sentence may have them in another order."""
    rows = []
    for row in re.findall(r"^\|.+\|$", page.read_text(), re.M):
        text = re.sub(r"\(.*?\)", "", _CODE.sub("", row))
        numbers = [_SEPARATOR.sub("", number) for number in _NUMBER.findall(text)]
        rows.append((_CODE.findall(row), sorted(numbers)))
    return rows


def numbers(page: Path) -> list[str]:
    """The numbers of running text, with a point before decimals and nothing between thousands."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith(("|", "    "))]
    text = re.sub(r"\]\([^)]*\)", "]", _CODE.sub("", "\n".join(lines)))
    return sorted(_SEPARATOR.sub("", number).replace(",", ".") for number in _NUMBER.findall(text))


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+(?= )", page.read_text(), re.M)


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_has_the_commands_links_figures_and_headings_of_the_readme(page):
    assert commands(page) == commands(README)
    assert sorted(links(page)) == sorted(links(README))
    assert tables(page) == tables(README)
    assert headings(page) == headings(README)
    assert numbers(page) == numbers(README)


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_names_every_flag_and_file_that_the_readme_names(page):
    assert sorted(_CODE.findall(page.read_text())) == sorted(_CODE.findall(README.read_text()))
