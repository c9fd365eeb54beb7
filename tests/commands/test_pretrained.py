"""The policies that ship: each has a card, and plays as its card says."""

from __future__ import annotations

import re

import imageio.v3 as imageio
import pytest

from evaluation.load import load_policy
from evaluation.score import score
from tests.conftest import ROOT

POLICIES = sorted(path.parent for path in (ROOT / "pretrained").glob("*/config.yaml"))
MEGABYTES = 20  # of a clean clone, for all of them


@pytest.mark.parametrize("folder", POLICIES, ids=lambda folder: folder.name)
def test_a_card_says_what_the_list_says_and_how_the_policy_was_made(folder):
    rows = dict(
        re.findall(r"^\| (\w+(?: [\w ]+)?) \| (.+) \|$", (folder / "README.md").read_text(), re.M)
    )
    assert rows.keys() >= {
        "score",
        "chosen",
        "command",
        "steps",
        "time",
        "machine",
        "commit",
        "licence",
    }
    number = r"(-?[\d,.]+)"
    score = rf"mean return {number} in 100 greedy episodes, 95% interval {number} to {number}"
    said = re.fullmatch(score, rows["score"])
    assert said is not None
    mean, low, high = said.groups()
    name = folder.name
    line = f"| [{name}]({name}/README.md) | {mean} | {low} to {high} | {rows['steps']} |"
    assert line in (ROOT / "pretrained" / "README.md").read_text().splitlines()
    assert re.search(rf"^`python train.py --env {re.escape(name)} --seed \d+", rows["command"])
    assert imageio.imread(folder / "frame.jpg").std() > 1  # a picture, not one colour


def test_the_policies_are_small_and_the_list_has_no_others():
    listed = re.findall(r"^\| \[([^]]+)\]", (ROOT / "pretrained" / "README.md").read_text(), re.M)
    assert sorted(listed) == [folder.name for folder in POLICIES]
    assert len(POLICIES) > 1
    files = [path for path in (ROOT / "pretrained").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20


@pytest.mark.parametrize("name", ["Hopper-v4", "LunarLanderContinuous-v3"])
def test_a_policy_scores_what_its_card_says(name):
    folder = ROOT / "pretrained" / name
    policy = load_policy(folder)
    mean = score(policy.model, policy.config, 4, seed=5).mean()
    (said,) = re.findall(r"mean return (\S+) in", (folder / "README.md").read_text())
    assert mean == pytest.approx(float(said.replace(",", "")), rel=0.2)
