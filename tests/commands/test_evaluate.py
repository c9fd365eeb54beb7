from __future__ import annotations

import ctypes.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import evaluate
from tests.conftest import ROOT, run_command, wait_until
from tests.evaluation.fragile_env import FOLDER
from tests.evaluation.untrained import untrained


def video_of(env: str, folder: Path) -> list[np.ndarray]:
    path = folder / "episode.mp4"
    done = run_command(
        "evaluate.py", str(untrained(env, folder)), "--episodes", "1", "--video", str(path)
    )
    assert (done.returncode, done.stderr) == (0, "")  # no library says anything
    frames = folder / "frames.npy"  # read elsewhere, for the reason that `as_gif` has
    code = "import sys, numpy as np, imageio.v2 as i; np.save(sys.argv[2], [f for f in i.get_reader(sys.argv[1])])"
    done = run_command("-c", code, str(path), str(frames))
    assert done.returncode == 0, done.stderr
    return [*np.load(frames)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "shape"),
    [
        ("HalfCheetah-v4", (480, 480, 3)),
        ("CartPole-v1", (400, 600, 3)),
    ],
)
def test_a_video_shows_the_episode(env, shape, tmp_path):
    if env == "HalfCheetah-v4" and ctypes.util.find_library("OSMesa") is None:
        pytest.skip("the system library OSMesa is missing: apt-get install libosmesa6")
    frames = video_of(env, tmp_path)
    assert 5 <= len(frames) <= 41
    assert frames[0].shape == shape
    assert frames[0].std() > 5  # a picture, not one colour
    assert not np.array_equal(frames[0], frames[-1])


@pytest.fixture
def command(monkeypatch):
    """Runs the command in this process, which is sooner done than starting another."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        evaluate.main()

    return run


def test_the_scores_are_printed(tmp_path, command, capsys):
    folder = untrained("tests.toy_envs:ConstantReward", tmp_path)
    command(str(folder), "--episodes", "3", "--stochastic", "--trust")
    assert capsys.readouterr().out == (
        "tests.toy_envs:ConstantReward, update-00000001 (0 steps), stochastic: return mean 10.00,"
        " std 0.00, episodes 3, mean length 10.0\n"
    )


def test_a_league_is_printed_and_drawn(tmp_path, command, capsys):
    folder = untrained("microrts-4x4", tmp_path, test_max_steps=5)
    command(str(folder), "--opponents", "passiveAI", "randomAI", "--episodes", "2")
    title, header, *rows, path = capsys.readouterr().out.splitlines()
    assert title == "microrts-4x4, update-00000001 (0 steps), greedy"
    assert header.split() == ["opponent", "games", "win", "draw", "loss", "length"]
    assert [row.split()[:5] for row in rows] == [
        ["passiveAI", "2", "0.00", "1.00", "0.00"],
        ["randomAI", "2", "0.00", "1.00", "0.00"],
        ["mean", "4", "0.00", "1.00", "0.00"],
    ]
    assert path == str(folder / "league.png")
    assert np.asarray(Image.open(path).convert("RGB")).std() > 5


TOY, GAME = "tests.toy_envs:ConstantReward", "microrts-4x4"


@pytest.mark.parametrize(
    ("env", "arguments", "complaint"),
    [
        (TOY, ["/nowhere"], "/nowhere is not the folder of a run"),
        (TOY, ["RUN", "--episodes", "0"], "episodes is 0, but must be at least 1"),
        (
            TOY,
            ["RUN", "--episodes", "0", "--export", "a.pt2", "--opponents", "all"],
            "episodes is 0, but all are to be played against: give --episodes",
        ),
        (TOY, ["RUN", "--seed", "-1"], "seed is -1, but must be at least 0"),
        (TOY, ["RUN", "--checkpoint", "best"], "has no best checkpoint: .* leave --checkpoint out"),
        (
            TOY,
            ["RUN", "--opponents", "rojo"],
            "opponents rojo play microRTS.*leave --opponents out",
        ),
        (TOY, ["RUN", "--video", "film.gif"], r"film\.gif must be an mp4"),
        (TOY, ["RUN", "--video", "film.mp4"], "cannot be rendered as images.*leave --video out"),
        (TOY, ["RUN", "--follow", "--video", "film.mp4"], "video is film.mp4, but --follow scores"),
        (TOY, ["RUN", "--export", "policy.txt"], r"export policy\.txt must be an ONNX model"),
        (TOY, ["RUN", "--export", "RUN"], "is a folder that holds something: name a new one"),
        (GAME, ["RUN", "--opponents", "coac"], "opponents has 'coac': give all, or some of"),
    ],
)
def test_bad_input_is_one_line(env, arguments, complaint, tmp_path, command, capsys):
    folder = str(untrained(env, tmp_path))
    with pytest.raises(SystemExit) as end:
        command("--trust", *[folder if argument == "RUN" else argument for argument in arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert re.match(f"evaluate.py: .*{complaint}", printed.err)


@pytest.mark.parametrize(
    ("setting", "value"), [("env", "strangers:Env"), ("network", "strangers:Net")]
)
def test_code_that_a_run_folder_names_is_not_imported_unasked(
    setting, value, tmp_path, command, capsys, monkeypatch
):
    folder = untrained("CartPole-v1", tmp_path)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["config"][setting] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "strangers.py").write_text("open('executed', 'w')\n")
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        command(".", "--episodes", "1")
    assert end.value.code == 2
    assert re.match(f"evaluate.py: {setting} {value} .*Give --trust if", capsys.readouterr().err)
    assert not (folder / "executed").exists()
    with pytest.raises(SystemExit):  # the module lacks the class
        command(".", "--episodes", "1", "--trust")
    assert (folder / "executed").exists()


@pytest.mark.slow
def test_ctrl_c_ends_without_a_traceback(tmp_path):
    folder = untrained("tests.evaluation.fragile_env:Fragile", tmp_path)
    process = subprocess.Popen(
        [sys.executable, "evaluate.py", str(folder), "--episodes", "1000000", "--trust"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), FOLDER: str(tmp_path)},
    )  # fmt: skip
    wait_until((tmp_path / "played").exists, 60, "the first episodes")
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")


def test_a_film_that_is_ended_leaves_nothing_behind(tmp_path):
    folder = untrained("HalfCheetah-v4", tmp_path / "policy", test_max_steps=1000)
    film = tmp_path / "film.mp4"
    process = subprocess.Popen(
        [sys.executable, "evaluate.py", str(folder), "--episodes", "0", "--video", str(film)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob(".film.*.unfinished.mp4")), 60, "the first frame")
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + signal.SIGTERM, "")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
