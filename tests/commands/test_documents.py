"""What the documents, the policies' cards and the containers' files have the reader type is understood."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from settings.flags import read_flags
from tests.conftest import ROOT

COMPOSE = ROOT / "docker" / "compose.yaml"
PAGES = [
    *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("pretrained/**/*.md"),
    COMPOSE,
]
ASKS = {"--help", "--completion", "--dry_run", "--dry-run"}


def commands(page: Path) -> list[list[str]]:
    """The flags and values of all commands of a page that train, without what follows them."""
    text = re.sub(r"\\\n", " ", page.read_text())
    text = re.sub(r"\n\s+(?=--\w)", " ", text)  # a command of several lines in YAML
    found = re.findall(r"python (?:\.\./)?train\.py (--[^\n`|]*)", text)
    lines = [re.sub(r"[\"']", " ", line).split() for line in found]
    return [list(itertools.takewhile(re.compile(r"[\w./:$=-]+").fullmatch, one)) for one in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_train_have_flags_and_values_that_exist(page):
    for words in commands(page):
        if not ASKS & set(words):
            assert read_flags(words)


def test_there_are_commands_to_read():
    assert len(commands(ROOT / "README.md")) > 6
    assert "--wait_for_cpus" in commands(COMPOSE)[0]


def test_the_containers_of_a_cluster_find_one_another():
    file = yaml.safe_load(COMPOSE.read_text())
    services = file["services"]
    own = {
        name: one["networks"]["cluster"]["ipv4_address"]
        for name, one in services.items()
        if "networks" in one
    }
    assert len(own) == 3
    assert len(set(own.values())) == 3
    for name, address in own.items():
        command = services[name]["command"]
        assert re.findall(r"--host (\S+)", command) == [address]
        assert set(re.findall(r"--(?:address|xparl_addr) (\S+)", command)) == {
            f"{own['learner']}:8010"
        }
        assert services[name]["depends_on"].keys() <= services.keys()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], "Apache-2.0")
