from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

import plot
from plot import Curve, band, group, read
from settings.config import Config, ConfigError
from tests.conftest import run_command


def write_run(folder, returns, **settings):
    folder.mkdir()
    config = Config(env="CartPole-v1", **settings)
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config.to_dict()}))
    lines = [
        json.dumps({"update": i + 1, "global_step": 10 * (i + 1), "episode_return_mean": r})
        for i, r in enumerate(returns)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def test_seeds_become_a_mean_and_a_95_percent_band():
    curves = [Curve(np.array([0.0, 100.0]), np.array([0.0, v])) for v in (10.0, 12.0, 14.0)]
    step, mean, half = band(curves)
    assert (step[-1], mean[-1]) == (100.0, 12.0)
    assert half is not None
    assert half[-1] == pytest.approx(4.303 * 2.0 / np.sqrt(3))
    assert band(curves[:1])[2] is None


def test_runs_are_grouped_by_what_differs_except_the_seed(tmp_path):
    folders = [
        write_run(tmp_path / "a", [1, 2], seed=1), write_run(tmp_path / "b", [3, 4], seed=2),
        write_run(tmp_path / "c", [5, 6], seed=1, gamma=0.5),
        write_run(tmp_path / "d", [7, 8], seed=2, gamma=0.5, samplers=2, test_episodes=3),
    ]  # fmt: skip
    lines = group(folders)["CartPole-v1"]
    assert {label: len(curves) for label, curves in lines.items()} == {
        "gamma 0.99": 2,
        "gamma 0.5": 2,
    }


def test_a_resumed_runs_later_lines_replace_those_it_overtook(tmp_path):
    folder = write_run(tmp_path / "a", [1, 2, 3])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '\n{"update": 2, "global_step": 20, "episode_return_mean": 9}\n{"update": 3, "gl'
        )
    np.testing.assert_array_equal(read(folder).value, [1, 9, 3])


def test_a_run_without_episodes_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no finished episode"):
        read(write_run(tmp_path / "a", [None]))


def test_the_command_draws_a_png(tmp_path):
    write_run(tmp_path / "a", [1, 5, 9], seed=1)
    write_run(tmp_path / "b", [2, 6, 8], seed=2)
    out = tmp_path / "curves.png"
    done = run_command("plot.py", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out))
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere"], "/nowhere is not the folder of a run"),
        (["RUN", "--out", "curves.jpeg"], r"curves\.jpeg must be a PNG"),
        (["RUN", "--out", "/nowhere/curves.png"], r"/nowhere/curves\.png cannot be written"),
        (["RUN", "--metric", "nothing"], "has no metric 'nothing': give one of .*global_step"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, tmp_path, capsys, monkeypatch):
    run_dir = str(write_run(tmp_path / "a", [1, 2]))
    command = ["plot.py", *[run_dir if argument == "RUN" else argument for argument in arguments]]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        plot.main()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.match(f"plot.py: .*{complaint}", printed)
