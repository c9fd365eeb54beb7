from __future__ import annotations

import ctypes.util
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import yaml

from common import checkpoint
from evaluate import score
from evaluation.process import Evaluator
from model import build_model
from rollout import Weights
from settings.config import Config
from settings.sources import preset
from tests.conftest import run_command


def untrained(env: str, folder: Path) -> Path:
    """A run's folder with the initial weights."""
    config = preset(env)
    config.test_max_steps = 40
    arrays = {f"model/{n}": a for n, a in build_model(config).get_weights().items()}
    checkpoint.save(folder / "checkpoints", 1, arrays, {"global_step": 0})
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config.to_dict()}))
    return folder


def test_episodes_are_played_once_each_and_capped():
    config = Config(env="tests.toy_envs:ConstantReward", test_max_steps=1000)
    scores = score(build_model(config), config, episodes=20, seed=0)
    assert scores.returns == [10.0] * 20
    config.test_max_steps = 4
    assert score(build_model(config), config, episodes=3, seed=0).lengths == [4] * 3


def test_the_seed_decides_the_scores():
    config = preset("CartPole-v1")
    model = build_model(config)
    one = score(model, config, 6, seed=1, greedy=False)
    assert one == score(model, config, 6, seed=1, greedy=False)
    assert one != score(model, config, 6, seed=2, greedy=False)
    assert one != score(model, config, 6, seed=1, greedy=True)


def test_the_evaluator_never_waits_and_skips_to_the_newest_weights():
    config = Config(env="tests.toy_envs:Slow", test_episodes=1)
    model = build_model(config)
    evaluator = Evaluator(config, Weights(0, model.get_weights()))
    try:
        begun = time.monotonic()
        for version in range(5):
            evaluator.submit(Weights(version, model.get_weights()), step=version)
        assert evaluator.poll() is None  # the first still runs
        finished = []
        while len(finished) < 2:
            evaluation = evaluator.poll()
            if evaluation is not None:
                finished.append(evaluation)
            assert time.monotonic() - begun < 60
        assert [e.step for e in finished] == [0, 4]
        assert finished[0].scores.returns == [10.0]
        evaluator.submit(Weights(5, model.get_weights()), 5)
        evaluator.submit(Weights(6, model.get_weights()), 6)
        assert evaluator.last(Weights(7, model.get_weights()), 7).step == 7
        assert evaluator.poll() is None
    finally:
        evaluator.close()


def video_of(env: str, folder: Path) -> list[np.ndarray]:
    path = folder / "episode.mp4"
    done = run_command(
        "evaluate.py", str(untrained(env, folder)), "--episodes", "1", "--video", str(path)
    )
    assert done.returncode == 0, done.stderr
    return [np.asarray(frame) for frame in imageio.get_reader(path)]  # pyright: ignore


@pytest.mark.parametrize(
    ("env", "shape"),
    [
        ("HalfCheetah-v4", (480, 480, 3)),
        ("PongNoFrameskip-v4", (210, 160, 3)),
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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere"], "not the folder of a run"),
        (["RUN", "--episodes", "0"], "episodes is 0"),
        (["RUN", "--checkpoint", "best"], "checkpoint .*best is corrupt"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, complaint, tmp_path):
    folder = str(untrained("CartPole-v1", tmp_path))
    done = run_command("evaluate.py", *[folder if a == "RUN" else a for a in arguments])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    import re

    assert re.search(complaint, done.stderr)
