from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs import make_vec_env, spaces_of
from evaluation import league
from evaluation.play import play
from evaluation.score import score
from model import build_model
from settings.config import Config
from settings.sources import preset


def test_episodes_are_played_once_each_and_capped():
    config = Config(env="tests.toy_envs:ConstantReward", test_max_steps=1000)
    scores = score(build_model(config), config, episodes=20, seed=0)
    assert scores.returns == [10.0] * 20
    config.test_max_steps = 4
    assert score(build_model(config), config, episodes=3, seed=0).lengths == [4] * 3


def test_environments_that_cannot_be_closed_are_scored_and_named(capsys):
    env = "tests.toy_envs:BadAtClosing"
    assert spaces_of(env, resets=True).action.contains(0)
    assert score(build_model(Config(env=env)), Config(env=env), 3, seed=0).returns == [10.0] * 3
    said = f"env {env} could not be closed: RuntimeError('closed already')\n"
    assert (
        capsys.readouterr().err == said * 5
    )  # one to look at its spaces, one to build for, three played


def test_a_vector_of_bytes_is_played_as_it_is_learned_from():
    config = Config(env="tests.image_envs:Bytes", noisy_layers=True)
    assert score(build_model(config), config, episodes=3, seed=0).returns == [10.0] * 3


def test_the_seed_decides_the_scores():
    config = preset("CartPole-v1")
    model = build_model(config)
    one = score(model, config, 6, seed=1, greedy=False)
    assert one == score(model, config, 6, seed=1, greedy=False)
    assert one != score(model, config, 6, seed=2, greedy=False)
    assert one != score(model, config, 6, seed=1, greedy=True)


def test_each_environment_plays_one_episode():
    """Counter's episodes end after 3 or 5 steps; environments step on until the last has ended."""
    config = Config(env="tests.toy_envs:Counter", env_num=8)
    venv = make_vec_env(config.env, 8)
    obs, _ = venv.reset(seed=list(range(8)))
    steps = list(play(build_model(config), venv, obs, np.random.default_rng(0), True, limit=100))
    lengths = np.sum([step.playing for step in steps], 0)
    assert set(lengths) == {3, 5}
    np.testing.assert_array_equal(np.sum([step.ended for step in steps], 0), np.ones(8))
    for step, later in itertools.pairwise(steps):
        np.testing.assert_array_equal(later.playing, step.playing & ~step.ended)


@pytest.fixture(scope="module")
def microrts() -> Config:
    config = preset("microrts-8x8")
    config.opponents = ("passiveAI", "randomBiasedAI")
    config.test_max_steps = 6  # no game is over by then
    return config


def test_games_that_are_cut_off_are_draws(microrts):
    means = score(build_model(microrts), microrts, episodes=4, seed=0).means()
    for opponent in microrts.opponents:
        shares = [means[f"{outcome}/{opponent}"] for outcome in ("win", "draw", "loss")]
        assert shares == [0.0, 1.0, 0.0]


def test_a_league_counts_every_game(microrts):
    model = build_model(microrts)
    standing = league.play(model, microrts, "passiveAI", games=3, seed=0, greedy=False)
    assert standing == ("passiveAI", 3, 0.0, 1.0, 0.0, 6.0)


def test_a_league_of_won_and_cut_off_games_sums_to_one():
    """Acting at random wins against a passive bot, in some games soon and in others too late."""
    config = preset("microrts-4x4")
    config.test_max_steps = 220
    standing = league.play(build_model(config), config, "passiveAI", 8, seed=0, greedy=False)
    assert standing.games == 8
    assert standing.win + standing.draw + standing.loss == 1.0
    assert 0 < standing.win < 1
    assert 0 < standing.draw < 1


def test_the_table_ends_with_the_mean_over_opponents():
    standings = [
        league.Standing("coacAI", 4, 0.5, 0.25, 0.25, 100.0),
        league.Standing("rojo", 4, 1.0, 0.0, 0.0, 50.0),
    ]
    last = league.table(standings).splitlines()[-1]
    assert last.split() == ["mean", "8", "0.75", "0.12", "0.12"]


def test_a_picture_that_cannot_be_written_is_said(tmp_path):
    standing = league.Standing("coacAI", 4, 0.5, 0.25, 0.25, 100.0)
    with pytest.raises(league.BadPicture, match="cannot be written"):
        league.draw([standing], tmp_path / "nowhere" / "league.png", "title")
