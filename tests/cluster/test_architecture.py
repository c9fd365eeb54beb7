from __future__ import annotations

import cluster
from tests.conftest import ROOT


def block(text: str, beginning: str) -> list[str]:
    """The lines from the first that contains `beginning` up to an empty line."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if beginning in line)
    return lines[first : lines.index("", first)]


def test_the_page_and_the_package_show_one_picture_and_one_table():
    page = (ROOT / "docs" / "architecture.md").read_text().replace("```\n", "\n")
    for beginning in ("weights (version, arrays)", "| consumes"):
        shown = block(cluster.__doc__ or "", beginning)
        assert len(shown) > 5
        assert block(page, beginning) == shown
