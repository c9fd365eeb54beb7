"""A search of settings: as a user types it, interrupted and gone on with."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search import Range, Suggested, draws, grid, read_space
from sweep import Arguments, begin_sweep

from common.cores import usable_cores
from common.values import plain_type
from settings.config import HINTS, ConfigError
from settings.flags import read_flags
from tests.conftest import (
    ROOT,
    assert_runs_are_kept,
    processes_mentioning,
    run_command,
    wait_until,
)

SWEEP = ("benchmarks/sweep.py", "--env", "CartPole-v1")


def test_a_grid_has_every_combination():
    space = read_space(
        ["update_epochs=4,10", "hidden_sizes=64 64,32", "shared_trunk=true,false,true"]
    )
    assert len(grid(space)) == 8
    assert {"update_epochs": "10", "hidden_sizes": "64 64", "shared_trunk": "false"} in grid(space)
    some = draws(space, 5)
    assert len({str(settings) for settings in some}) == 5
    assert len(draws(space, 100)) == 8
    assert draws(space, 3) == some[:3]


@given(st.floats(1e-8, 1), st.floats(1e-8, 1e8), st.booleans())
def test_draws_are_within_their_range_and_can_be_typed(low: float, width: float, log: bool):
    scale = ":log" if log else ""
    space = read_space([f"learning_rate={low}..{low + width}{scale}", f"seed=3..5{scale}"])
    for settings in draws(space, 20):
        for name, word in settings.items():
            values = space[name]
            assert isinstance(values, Range)
            value = read_flags([f"--{name}", word])[name]
            assert isinstance(value, plain_type(HINTS[name]))
            assert values.low <= value <= values.high


def test_draws_cover_a_range_evenly():
    space = read_space(["learning_rate=1e-4..1e-2:log", "update_epochs=1..4", "gamma=0.5..0.7"])
    found = draws(space, 400)
    decades = np.log10([float(settings["learning_rate"]) for settings in found])
    assert np.mean(decades < -3) == pytest.approx(0.5, abs=0.1)
    assert np.mean([float(s["gamma"]) < 0.6 for s in found]) == pytest.approx(0.5, abs=0.1)
    epochs = [settings["update_epochs"] for settings in found]
    assert [epochs.count(n) / 400 for n in "1234"] == pytest.approx([0.25] * 4, abs=0.08)


def test_points_in_a_name_are_no_range():
    space = read_space(["initial_weights=../a,../b"])
    assert space == {"initial_weights": ("../a", "../b")}


@pytest.mark.parametrize(
    ("vary", "complaint"),
    [
        ("learning_rat=1,2", "there is no setting --learning_rat: did you mean --learning_rate?"),
        ("gamma=0.9,1.5", "gamma is 1.5, but must be a number from 0 to 1"),
        ("gamma=0.9..1.5", "gamma is 1.5, but must be a number from 0 to 1"),
        ("gamma=0.9..0.8", "vary gamma=0.9..0.8 is a range, but it must have LOW < HIGH"),
        ("seed=0..8:log", "it must have 0 < LOW < HIGH"),
        ("seed=1..8:lin", "log is the only scale, not lin"),
        ("network=a..b", "is a range, but both ends must be numbers"),
        ("target_kl=None..1", "is a range, but both ends must be numbers"),
        ("gamma", "vary gamma is neither NAME=VALUE,VALUE nor NAME=LOW..HIGH"),
    ],
)
def test_what_cannot_be_varied_says_why(vary, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_space([vary])


@pytest.mark.parametrize(
    ("more", "flags", "complaint"),
    [
        ({}, ["--gama", "0.9"], "no setting --gama: did you mean --gamma?"),
        ({}, ["--gamma", "0.5"], "--gamma 0.5 is decided by --vary"),
        ({}, ["--run_dir", "x"], "--run_dir x is decided by --out"),
        ({"vary": ("seed=1,2",)}, [], "--seed 1 is decided by --seeds"),
        (
            {"vary": ("minibatch_size=256,100",)},
            [],
            "minibatch_size 100 does not divide batch_size",
        ),
        ({"vary": ("gamma=0.9..1",), "search": "grid"}, [], "a grid needs single values"),
        ({"trials": 2}, [], "a grid tries all combinations"),
        ({"seeds": ()}, [], "seeds is \\(\\), but must be one at least"),
    ],
)
def test_a_mistake_is_found_before_the_first_run(more, flags, complaint, tmp_path):
    given = {"env": "CartPole-v1", "vary": ("gamma=0.9,0.95",), "out": tmp_path / "sweep"} | more
    with pytest.raises(ConfigError, match=complaint):
        begin_sweep(Arguments(**given), flags)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("flag", "again"),
    [
        (("--vary", "gamma=0.9,0.95"), ("--vary", "update_epochs=2,4")),
        (("--at_once", "1"), ("--at-once=2",)),
    ],
)
def test_values_after_a_second_flag_are_not_lost(flag, again):
    done = run_command(*SWEEP, *flag, *again)
    assert done.returncode != 0
    assert done.stderr == (
        f"sweep.py: {flag[0]} is given twice: give it once, with all of its values\n"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs Optuna: `make optuna`"
)
def test_optuna_suggests_numbers_from_all_of_a_range(tmp_path):
    space = read_space(["learning_rate=1e-4..1e-2:log", "update_epochs=2..9", "gamma=0.9,0.95"])
    search = Suggested(space, 12, tmp_path)
    found = []
    for trial in range(12):
        found.append(search.settings(trial))
        search.tell(trial, float(trial))
    rates = {float(settings["learning_rate"]) for settings in found}
    assert len(rates) > 8
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-2
    assert {settings["update_epochs"] for settings in found} <= set("23456789")
    assert {settings["gamma"] for settings in found} <= {"0.9", "0.95"}


def test_runs_take_a_core_each_unless_they_share_a_cluster(tmp_path):
    arguments = Arguments("CartPole-v1", ("gamma=0.9,0.95",), out=tmp_path / "here")
    assert begin_sweep(arguments, [])[1] == usable_cores()
    arguments.out = tmp_path / "there"
    assert begin_sweep(arguments, ["--xparl_addr", "10.0.0.1:8010"])[1] == 1


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs Optuna: `make optuna`"
)
def test_a_search_by_optuna_goes_on_after_ctrl_c(tmp_path: Path):
    out = tmp_path / "sweep"
    command = [*SWEEP, "--steps", "1500", "--seeds", "3", "--trials", "2", "--search", "optuna",
               "--vary", "learning_rate=1e-4..1e-2:log", "update_epochs=2,4", "--out", str(out),
               "--", "--samplers", "0", "--compile", "off", "--test_episodes", "1"]  # fmt: skip
    first = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    checkpoints = out / "t00__s3" / "checkpoints"
    wait_until(checkpoints.exists, 120, "the first run")
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert processes_mentioning(str(out)) == []  # nothing is left behind
    suggested = json.loads((out / "t00.json").read_text())

    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.with_name("sweep.json").read_text())["trials"]
    assert {row["trial"] for row in found} == {0, 1}
    assert found[0]["iqm"] >= found[1]["iqm"]
    assert [row["seeds"] for row in found] == [[row["iqm"]] for row in found]
    (zeroth,) = [row["settings"] for row in found if row["trial"] == 0]
    assert float(zeroth["learning_rate"]) == pytest.approx(suggested["learning_rate"], rel=1e-3)
    assert zeroth["update_epochs"] == suggested["update_epochs"]
    assert out.with_name("sweep.md").read_text() == done.stdout[done.stdout.index("# Sweep") :]

    assert len(list(out.glob("*/summary.json"))) == 2
    assert_runs_are_kept(command, out, "*/summary.json")
