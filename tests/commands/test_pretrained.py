"""The policies that ship: each has a card, and plays as its card says."""

from __future__ import annotations

import re

import pytest

from evaluation.load import load_policy
from evaluation.score import score
from tests.conftest import ROOT

POLICIES = sorted(path.parent for path in (ROOT / "pretrained").glob("*/config.yaml"))
MEGABYTES = 20  # of a clean clone, for all of them


def test_every_policy_has_a_card_a_picture_and_a_line_in_the_list():
    listed = (ROOT / "pretrained" / "README.md").read_text()
    assert len(POLICIES) > 1
    for folder in POLICIES:
        assert {"README.md", "frame.jpg"} <= {path.name for path in folder.iterdir()}
        assert f"[{folder.name}]({folder.name}/README.md)" in listed
    files = [path for path in (ROOT / "pretrained").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20


@pytest.mark.parametrize("name", ["Hopper-v4", "LunarLanderContinuous-v3"])
def test_a_policy_scores_what_its_card_says(name):
    folder = ROOT / "pretrained" / name
    policy = load_policy(folder)
    mean = score(policy.model, policy.config, 4, seed=5).mean()
    (said,) = re.findall(r"mean return (\S+) in", (folder / "README.md").read_text())
    assert mean == pytest.approx(float(said.replace(",", "")), rel=0.2)
