"""Papers' claims, run as a user types it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.far_goal import FarGoal
from benchmarks.papers import (
    CLAIMS,
    Arguments,
    Scored,
    begin_papers,
    chosen,
    compared,
    runs_of,
    scored,
    verdict,
)
from common.statistics import chance_of_difference, probability_of_improvement
from envs import spaces_of
from settings.config import ConfigError
from settings.sources import parse
from tests.conftest import run_command

RND, MOUNTAIN_CAR = ("1810.12894",), ("MountainCarContinuous-v0",)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.name}, {claim.env}")
def test_the_flags_of_a_claim_are_a_runs(claim):
    configs = [parse(["--env", env, *claim.common, *way]) for env, way in claim.ways()]
    assert configs[0] != configs[1]
    if claim.other_env is not None:
        assert [spaces_of(env).privileged for env, _ in claim.ways()] == [2, 0]
    bots = {f"final/win/{bot}" for config in configs for bot in config.opponents}
    assert claim.measure == "final" or claim.measure in bots


@pytest.mark.parametrize(
    ("better", "other", "says"),
    [
        ([4.0, 5.0, 6.0, 7.0], [0.0, 1.0, 2.0, 3.0], "holds"),
        ([0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], "the contrary holds"),
        ([0.0, 4.0, 2.0, 6.0], [3.0, 1.0, 5.0, 7.0], "not decided"),
        ([3.0, 4.0, 5.0], [0.0, 1.0, 2.0], "not decided"),
        ([9.0], [1.0], "not decided"),
    ],
)
def test_a_claim_holds_where_the_seeds_leave_no_doubt(better, other, says):
    values = np.array(better), np.array(other)
    found = float(probability_of_improvement(*values).value), chance_of_difference(*values)
    assert verdict(*found) == says


def test_runs_that_have_ended_are_compared_with_those_of_earlier_calls_and_not_run_again(tmp_path):
    out = tmp_path / "papers"
    arguments = Arguments(only=RND, envs=MOUNTAIN_CAR, seeds=(1, 2, 3, 4), out=out)
    (claim,) = chosen(arguments)
    ways = runs_of(claim, arguments, ["--compile", "off"])
    for runs, values in zip(
        ways, ((93.0, 94.0, 95.0, 96.0), (-1.0, 92.5, -2.0, -3.0)), strict=True
    ):
        for run, value in zip(runs, values, strict=True):
            run.folder.mkdir(parents=True)
            run.scores.write_text(json.dumps({"final": value}))
    run.scores.with_stem(f"{run.folder.name}-old").write_text("not a seed's")
    command = [
        "benchmarks/papers.py",
        "--only",
        *RND,
        "--envs",
        *MOUNTAIN_CAR,
        "--out",
        str(out),
        "--seeds",
    ]
    done = run_command(*command, "1", "2", "--", "--compile", "off")
    assert done.returncode == 0, done.stderr
    claims = json.loads(out.with_name("papers.json").read_text())["claims"]
    found = {claim["verdict"]: claim for claim in claims}
    assert found.keys() == {"holds", "not run"}
    assert (found["holds"]["seeds"], found["holds"]["probability"]) == ([1, 2, 3, 4], 1.0)
    assert "| 93, 94, 95, 96 | -1, 92.5, -2, -3 | 1.00 | 1.00 to 1.00 | 0.029 |" in done.stdout
    assert out.with_name("papers.md").read_text() in done.stdout


def test_the_far_goal_is_seventy_steps_away_and_nothing_before_it_is_worth_anything():
    env = FarGoal()
    way = [move for corridor in range(6) for move in [*[corridor % 2] * 10, 2, 2]][:-2]
    for _ in range(2):
        assert env.reset()[0].sum() == 1.0
        steps = [env.step(move) for move in way]
        assert [reward for _, reward, *_ in steps] == [0.0] * 69 + [1.0]
        assert [terminated for _, _, terminated, *_ in steps] == [False] * 69 + [True]
        assert all(obs.sum() == 1.0 for obs, *_ in steps)


def test_there_is_no_verdict_without_a_run_that_was_begun(tmp_path):
    arguments = Arguments(only=RND, envs=MOUNTAIN_CAR, out=tmp_path / "papers")
    (claim,) = chosen(arguments)
    for way, runs in enumerate(runs_of(claim, arguments, [])):
        for run in runs:
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            run.folder.with_suffix(".log").touch()  # a run that fails early has no more
            if (way, run.seed) != (0, 3):
                run.folder.mkdir()
                run.scores.write_text(json.dumps({"final": 10.0 - 5 * way + 0.1 * run.seed}))
    found = scored(claim, arguments, [])
    assert ([run.seed for run in found.better], found.missing) == ([1, 2, 4, 5], [3])
    assert compared(claim, found)["verdict"] == "incomplete, without seed 3"
    assert compared(claim, found._replace(missing=[]))["verdict"] == "holds"
    # another claim may have trained one way, which is the same, with more seeds
    (
        runs_of(claim, Arguments(only=RND, envs=MOUNTAIN_CAR, seeds=(6,), out=arguments.out), [])[
            0
        ][0].folder
    ).mkdir()
    assert scored(claim, arguments, []).missing == [3]
    assert compared(claim, Scored([], [], [1, 2]))["verdict"] == "incomplete, without seed 1, 2"


@pytest.mark.parametrize(
    ("more", "flags", "complaint"),
    [
        ({}, ["--seed", "3"], "--seed 3 is decided by --seeds"),
        ({}, ["--rnd_coefficient", "0"], "--rnd_coefficient 0.0 is decided by the claims"),
        ({}, ["--gama", "0.9"], "no setting --gama: did you mean --gamma?"),
        ({}, ["--minibatch_size", "100"], "minibatch_size 100 does not divide batch_size"),
        ({"seeds": (1, 2, 1)}, [], "seeds is 1 2 1, but each can be given once"),
        ({"at_once": 0}, [], "at_once is 0, but must be one at least"),
    ],
)
def test_what_would_falsify_a_comparison_is_refused(more, flags, complaint, tmp_path):
    arguments = Arguments(only=RND, envs=MOUNTAIN_CAR, out=tmp_path / "papers", **more)
    with pytest.raises(ConfigError, match=complaint):
        begin_papers(arguments, flags)
    assert not (tmp_path / "papers").exists()


def test_a_claim_that_does_not_exist_is_one_line():
    with pytest.raises(
        ConfigError, match=r"only is 1810\.1 and envs is Ant-v4, but.* give some of"
    ):
        chosen(Arguments(only=("1810.1",), envs=("Ant-v4",)))
