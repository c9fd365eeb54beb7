"""microRTS against the Java game stepped by hand, and what a user may ask of it."""

from __future__ import annotations

import numpy as np
import pytest

from envs import UnknownEnv, WrongOption, make_vec_env
from envs.microrts.game import (
    CHOICES,
    COMPONENTS,
    OPPONENTS,
    SELF,
    Game,
    WrongOpponents,
    assign_opponents,
    map_of,
)
from envs.microrts.options import evaluation_game
from envs.microrts.vector import MicrortsEnvs, draw
from settings.config import Config
from settings.rules import validate
from settings.sources import preset
from tests.envs.microrts_by_hand import Reference, legal_action


@pytest.mark.parametrize(
    ("opponents", "sides", "limit", "partial"),
    [
        (("workerRushAI", "coacAI"), (0, 1), 400, False),  # terminates
        (("passiveAI", "lightRushAI"), (1, 0), 60, True),  # truncates
    ],
)
def test_games_equal_those_stepped_by_hand(opponents, sides, limit, partial):
    weights = (10.0, 1.0, 2.0, 0.2, 1.0, 4.0)
    game = Game(opponents, sides, max_steps=limit, reward_weights=weights, partial=partial)
    venv = make_vec_env("microrts-8x8", 2, game=game)
    assert isinstance(venv, MicrortsEnvs)
    assert venv.action_mask is not None
    pairs = zip(opponents, sides, strict=True)
    references = [Reference("microrts-8x8", o, side, limit, partial) for o, side in pairs]
    obs, _ = venv.reset(seed=[1, 2])
    rng, ends = np.random.default_rng(0), {"terminated": 0, "truncated": 0}
    for _ in range(500):
        for i, reference in enumerate(references):
            np.testing.assert_array_equal(obs[i], reference.obs)
            np.testing.assert_array_equal(venv.action_mask[i], reference.mask())
        actions = np.stack([legal_action(mask, rng) for mask in venv.action_mask])
        expected = [r.step(a) for r, a in zip(references, actions, strict=True)]
        obs, reward, terminated, truncated, _ = venv.step(actions)
        np.testing.assert_array_equal(venv.raw_rewards, [e[0] for e in expected])
        np.testing.assert_allclose(reward, [e[0] @ np.array(weights) for e in expected])
        np.testing.assert_array_equal(terminated, [e[1] for e in expected])
        np.testing.assert_array_equal(truncated, [e[2] for e in expected])
        ends["terminated"] += terminated.sum()
        ends["truncated"] += truncated.sum()
    assert ends["truncated" if limit == 60 else "terminated"] > 1
    venv.close()


def test_in_self_play_both_sides_see_themselves_as_their_own():
    venv = MicrortsEnvs("microrts-8x8", 2, Game((SELF, SELF), (0, 1), max_steps=300))
    assert venv.action_mask is not None
    obs, _ = venv.reset()
    # the map is symmetric: turned by 180 degrees, each side's view is the other's
    np.testing.assert_array_equal(obs[0], obs[1][::-1, ::-1])
    own, resource = 11, 14  # planes: owner "own", unit type "resource"
    assert not (obs[..., own] & obs[..., resource]).any()
    rng, ended = np.random.default_rng(0), 0
    for _ in range(700):
        actions = np.stack([legal_action(mask, rng) for mask in venv.action_mask])
        _, _, terminated, truncated, _ = venv.step(actions)
        over = terminated | truncated
        assert over[0] == over[1]
        if over[0]:
            ended += 1
            first, second = venv.extras(0), venv.extras(1)
            assert first["win/self"] == second["loss/self"]
            assert first["draw/self"] == second["draw/self"]
    assert ended >= 2
    venv.close()


def test_a_game_whose_last_units_die_in_one_step_is_a_draw_for_both_sides(tmp_path):
    workers = "".join(
        f'<rts.units.Unit type="Worker" ID="{i}" player="{i}" x="{3 + i}" y="4" resources="0"'
        f' hitpoints="1"></rts.units.Unit>'
        for i in range(2)
    )
    (tmp_path / "duel.xml").write_text(
        '<rts.PhysicalGameState width="8" height="8"><terrain>' + "0" * 64 + "</terrain>"
        '<players><rts.Player ID="0" resources="0"></rts.Player>'
        '<rts.Player ID="1" resources="0"></rts.Player></players><units>'
        '<rts.units.Unit type="Resource" ID="4" player="-1" x="0" y="0" resources="20"'
        f' hitpoints="1"></rts.units.Unit>{workers}</units></rts.PhysicalGameState>'
    )
    game = Game((SELF, SELF), (0, 1), str(tmp_path / "duel.xml"))
    venv = MicrortsEnvs("microrts-8x8", 2, game)
    venv.reset()
    assert venv.action_mask is not None
    attack, first_target = 5, sum(COMPONENTS[:-1])
    actions = np.zeros((2, 64, 7), np.int64)
    for side, cells in enumerate(venv.action_mask.reshape(2, 64, CHOICES)):
        (cell,) = np.flatnonzero(cells[:, attack])
        actions[side, cell, 0] = attack
        actions[side, cell, 6] = np.flatnonzero(cells[cell, first_target:])[0]
    terminated, steps = np.zeros(2, bool), 0
    while not terminated.any() and steps < 50:
        _, _, terminated, _, _ = venv.step(actions.reshape(2, -1))
        steps += 1
    assert terminated.all()
    assert [venv.extras(side)["draw/self"] for side in (0, 1)] == [1.0, 1.0]
    venv.close()


def test_where_both_sides_are_played_an_evaluation_meets_each_bot_from_both():
    for bots in (("coacAI",), ("coacAI", "randomBiasedAI"), ("coacAI", "passiveAI", "rojo")):
        config = Config(env="microrts-8x8", env_num=2, opponents=bots, sides="both")
        game = evaluation_game(config, range(2 * len(bots)))
        assert sorted(zip(game.opponents, game.sides, strict=True)) == [
            (bot, side) for bot in bots for side in (0, 1)
        ]
    five = ("coacAI", "lightRushAI", "passiveAI", "randomAI", "rojo")
    few = evaluation_game(config, range(4), five)
    assert sorted(few.sides) == [0, 0, 1, 1]


@pytest.mark.parametrize("opponents", [(SELF,), ("passiveAI", SELF, SELF)])
def test_self_play_environments_come_first_and_in_pairs(opponents):
    with pytest.raises(ValueError, match="the first, and in pairs"):
        MicrortsEnvs("microrts-8x8", len(opponents), Game(opponents, (0,) * len(opponents)))


def test_an_episode_tells_its_outcome_and_its_raw_rewards():
    venv = MicrortsEnvs("microrts-8x8", 1, Game(("workerRushAI",), (0,)))
    venv.reset(seed=3)
    total = np.zeros(6)
    for _ in range(1000):
        _, _, terminated, _, _ = venv.step(np.zeros((1, 64 * 7), np.int64))  # does nothing
        total += venv.raw_rewards[0]
        if terminated[0]:
            break
    extras = venv.extras(0)
    assert (extras["win/workerRushAI"], extras["loss/workerRushAI"]) == (0.0, 1.0)
    assert extras["raw_reward/win_loss"] == -1.0
    assert extras["raw_reward/attack"] == total[4]
    venv.close()


@pytest.mark.parametrize("opponent", ["randomBiasedAI", "randomAI"])
def test_a_bot_that_plays_at_random_follows_its_environments_seed(opponent):
    def play(opponents: tuple[str, ...], which: int) -> np.ndarray:
        venv = MicrortsEnvs("microrts-8x8", len(opponents), Game(opponents, (0,) * len(opponents)))
        seeds = [7 if i == which else 90 + i for i in range(len(opponents))]
        obs, _ = venv.reset(seed=seeds)
        seen = [obs[which].copy()]
        for _ in range(200):
            obs = venv.step(np.zeros((len(opponents), 64 * 7), np.int64))[0]
            seen.append(obs[which].copy())
        venv.close()
        return np.stack(seen)

    alone = play((opponent,), 0)
    np.testing.assert_array_equal(alone, play((opponent,) * 3, 1))
    assert len(np.unique(alone, axis=0)) > 10  # it does move


def test_unit_selection_orders_one_unit():
    venv = MicrortsEnvs(
        "microrts-8x8", 1, Game(("passiveAI",), (0,), policy="unit_selection")
    )  # fmt: skip
    before, _ = venv.reset()
    before = before.copy()
    assert venv.action_mask is not None
    cells = venv.action_mask.reshape(64, CHOICES)
    worker = next(c for c in np.flatnonzero(cells.any(1)) if cells[c, 1])  # one that may move
    direction = int(np.flatnonzero(cells[worker, 6:10])[0])
    action = np.array([[worker, 1, direction, 0, 0, 0, 0, 0]])
    obs, *_ = venv.step(action)
    moving = obs[0].reshape(64, -1)[:, 21 + 1]  # plane: current action "move"
    assert np.flatnonzero(moving).tolist() == [worker]
    venv.close()


@pytest.mark.parametrize("name", OPPONENTS)
def test_every_bot_plays(name):
    venv = MicrortsEnvs("microrts-8x8", 1, Game((name,), (0,)))
    venv.reset(seed=1)
    nothing = np.zeros((1, 64 * 7), np.int64)
    for _ in range(2):
        venv.step(nothing)
    obs, reward, terminated, truncated, _ = venv.step(nothing)
    assert obs[0, ..., 12].any()  # plane: the opponent's units are on the map
    assert not (terminated | truncated).any()
    assert np.isfinite(reward).all()
    venv.close()


def test_opponents_by_name_and_number():
    assert assign_opponents(["coacAI:2", "workerRushAI", "passiveAI"], 7, 2) == (
        SELF, SELF, "coacAI", "coacAI", "workerRushAI", "workerRushAI", "passiveAI",
    )  # fmt: skip
    for entries, envs, selfplay, message in (
        (["coac"], 4, 0, "must name bots"),
        (["coacAI:5"], 4, 0, "take 5 environments"),
        (["coacAI:3"], 4, 0, "leaves 4"),
        (["coacAI"], 4, 3, "must be even"),
        (["coacAI:²"], 4, 0, "must name bots"),
        (["coacAI:2", "coacAI:2"], 4, 0, "names coacAI twice"),
    ):
        with pytest.raises(WrongOpponents, match=message):
            assign_opponents(entries, envs, selfplay)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_weights": (1.0, 2.0)}, "must be 6 numbers"),
        ({"env_num": 3, "selfplay_envs": 2}, "must be even"),
        ({"opponents": ("coac",)}, "must name bots"),
    ],
)
def test_settings_that_break_a_rule_are_named(settings, message):
    config = Config(**{"env": "microrts-8x8", "env_num": 2, "batch_size": 768, **settings})
    with pytest.raises(WrongOption, match=message):
        validate(config)


def test_a_map_that_does_not_exist_or_has_another_size_is_named():
    with pytest.raises(UnknownEnv, match="basesWorkers8x8A"):
        map_of("microrts-8x8", "maps/8x8/nothing.xml")
    with pytest.raises(UnknownEnv, match="microrts-16x16"):
        map_of("microrts-8x8", "maps/16x16/basesWorkers16x16.xml")
    with pytest.raises(UnknownEnv, match="sizes are 10x10"):
        map_of("microrts-7x7", None)


@pytest.mark.parametrize("size", [8, 10, 16, 24])
def test_presets_stand(size):
    config = preset(f"microrts-{size}x{size}")
    validate(config)
    assert config.network == "gridnet"


def test_a_pair_of_self_play_stays_in_one_sampler():
    config = Config(env="microrts-8x8", env_num=6, selfplay_envs=4, opponents=("passiveAI",))
    assert config.default_samplers(8) == 3
    assert config.env_options(range(2, 6))["game"].opponents == (SELF, SELF, *("passiveAI",) * 2)


def test_a_picture_shows_units_in_their_owners_colours():
    venv = MicrortsEnvs("microrts-8x8", 1, Game(("passiveAI",), (0,)))
    venv.reset()
    picture = venv.picture()
    assert picture.shape == (256, 256, 3)
    colours = {tuple(c) for c in picture.reshape(-1, 3)}
    assert {(40, 90, 220), (220, 50, 50)} <= colours  # own and other
    assert picture.shape == draw(venv._raw[0]).shape
    venv.close()


def test_a_file_that_is_no_map_is_said(tmp_path):
    for name, content in (("text.xml", "no map"), ("size.xml", '<m height="eight" width="8"/>')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UnknownEnv, match=rf"{name} is no map of microRTS .*give another"):
            map_of("microrts-8x8", str(tmp_path / name))
