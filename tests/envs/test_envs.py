"""Every family against a scalar environment: the convention that all else rests on."""

from __future__ import annotations

import warnings

import cv2
import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from ale_py import ALEInterface, LoggerMode, roms
from gymnasium import spaces

from cluster.sampler import Sampler
from common.randomness import stream
from envs import UnknownEnv, UnsupportedEnv, family_of, make_vec_env, spaces_of
from envs.mujoco.tasks import TASKS
from envs.mujoco.vector import MujocoEnvs
from envs.scalar import plain_spaces
from learning.batches import observations
from rollout import Rollout
from settings.config import Config

ENVS = 3
SLOW = ("Ant-v4", "Ant-v5", "Humanoid-v4", "Humanoid-v5", "HumanoidStandup-v4")


class Reference:
    """One scalar environment under NEXT_STEP autoreset, written out."""

    def __init__(self, env: gymnasium.Env, seed: int):
        self.env, self.over = env, False
        self.obs, _ = env.reset(seed=seed)

    def step(self, action):
        """obs, reward, terminated, truncated, valid."""
        if self.over:
            self.obs, _ = self.env.reset()
            self.over = False
            return self.obs, 0.0, False, False, False
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        self.over = terminated or truncated
        return self.obs, reward, terminated, truncated, True


def scalar(env: str) -> gymnasium.Env:
    if ":" in env:
        from tests import toy_envs

        return plain_spaces(env, getattr(toy_envs, env.partition(":")[2])())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain_spaces(env, gymnasium.make(env))


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        ("CartPole-v1", 300),  # terminates
        ("Pendulum-v1", 450),  # truncates at 200
        ("MountainCarContinuous-v0", 1010),
        *((task, 340 if task in SLOW else 1010) for task in TASKS),  # cut off after 1,000
        ("LunarLanderContinuous-v3", 300),
        ("FrozenLake-v1", 100),  # a discrete observation
        ("CarRacing-v3", 3),  # an image
        ("tests.toy_envs:Counter", 60),  # both kinds of end
    ],
)
def test_vector_environment_equals_the_scalar_one(env, steps):
    venv = make_vec_env(env, ENVS)
    seeds = [11, 12, 2**31 - 2]
    obs, _ = venv.reset(seed=seeds)
    references = [Reference(scalar(env), seed) for seed in seeds]
    np.testing.assert_array_equal(obs, [r.obs for r in references])
    venv.action_space.seed(5)
    ends = 0
    for _ in range(steps):
        action = venv.action_space.sample()
        expected = [r.step(a) for r, a in zip(references, action, strict=True)]
        obs, reward, terminated, truncated, _ = venv.step(action)
        np.testing.assert_array_equal(obs, [e[0] for e in expected])
        np.testing.assert_array_equal(reward, [e[1] for e in expected])
        np.testing.assert_array_equal(terminated, [e[2] for e in expected])
        np.testing.assert_array_equal(truncated, [e[3] for e in expected])
        ends += np.sum(terminated | truncated)
    assert ends > 0 or env in ("CarRacing-v3", "HumanoidStandup-v4")


class AtariReference:
    """Pong and its like by hand: noops, frame skip 4, the maximum of two frames, 84x84 grey."""

    def __init__(self, rom: str, seed: int):
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", seed)
        path = roms.get_rom_path(rom)
        assert path is not None
        self.ale.loadROM(path)
        self.actions = self.ale.getMinimalActionSet()
        self.over = True

    def reset(self, frames: int) -> np.ndarray:
        """Begin an episode with FIRE where there is one, then noops: `frames` frames in all."""
        self.ale.reset_game()
        names = [action.name for action in self.actions]
        if "FIRE" in names:
            self.ale.act(self.actions[names.index("FIRE")])
            frames -= 1
        for _ in range(frames):
            self.ale.act(self.actions[0])
        self.stack = np.zeros((4, 84, 84), np.uint8)
        self._push(self.ale.getScreenGrayscale())
        self.over = False
        return self.stack

    def step(self, action: int):
        reward, screens = 0.0, []
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        self._push(np.maximum(screens[-1], screens[-2]) if len(screens) == 4 else screens[-1])
        self.over = self.ale.game_over()
        return self.stack, reward, self.over

    def _push(self, screen: np.ndarray) -> None:
        small = cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)
        self.stack = np.concatenate([self.stack[1:], small[None]])


@pytest.mark.parametrize(
    ("env", "rom"), [("PongNoFrameskip-v4", "pong"), ("BreakoutNoFrameskip-v4", "breakout")]
)
def test_atari_equals_the_emulator_stepped_by_hand(env, rom):
    venv = make_vec_env(env, 1)
    obs, info = venv.reset(seed=[7])
    reference = AtariReference(rom, 7)
    np.testing.assert_array_equal(obs[0], reference.reset(int(info["episode_frame_number"][0])))
    rng = np.random.default_rng(1)
    ends = 0
    for _ in range(2200):
        action = int(rng.integers(len(reference.actions)))
        ending = reference.over
        obs, reward, terminated, truncated, info = venv.step(np.array([action]))
        if ending:  # the reset row: its action is ignored, its reward is 0
            stack = reference.reset(int(info["episode_frame_number"][0]))
            assert (reward[0], terminated[0], truncated[0]) == (0, False, False)
        else:
            stack, expected, over = reference.step(action)
            assert (reward[0], terminated[0], truncated[0]) == (expected, over, False)
            ends += over
        if not reference.over:  # where a frame skip is cut short, which frames are pooled is ALE's
            np.testing.assert_array_equal(obs[0], stack)
        else:
            np.testing.assert_array_equal(obs[0, :3], stack[:3])
    assert ends >= 2


def test_sticky_actions_are_as_the_id_says():
    def frames(env: str) -> np.ndarray:
        venv = make_vec_env(env, 1)
        venv.reset(seed=[3])
        return np.stack([venv.step(np.array([2 + t % 2]))[0][0, -1] for t in range(60)])

    assert not np.array_equal(frames("ALE/Pong-v5"), frames("PongNoFrameskip-v4"))


@pytest.mark.slow
@pytest.mark.parametrize("env", ["tests.toy_envs:Counter", "CartPole-v1", "PongNoFrameskip-v4"])
def test_a_rollout_is_what_a_scalar_environment_gives_for_its_actions(env):
    """Through the sampler: reset rows are invalid, and stacks of frames are rebuilt exactly."""
    steps = 400 if env == "PongNoFrameskip-v4" else 40
    atari = env == "PongNoFrameskip-v4"
    config = Config(
        env=env, env_num=2, batch_size=2 * steps, minibatch_size=2,
        network="nature_cnn" if atari else "mlp",
    )  # fmt: skip
    sampler = Sampler(config, 0, 2)
    again = make_vec_env(env, 2)
    fragments = []
    for fragment in range(3):
        out = Rollout.empty(sampler.spec, 2)
        sampler.collect(fragment, fragment == 0, out)
        fragments.append(out)
    seeds = stream("reset", config.seed, 0).integers(2**31 - 1, size=2)
    obs, _ = again.reset(seed=seeds.tolist())
    resetting, invalid = np.zeros(2, bool), 0
    for out in fragments:
        seen = observations(out, torch.device("cpu")).numpy()
        for t in range(steps):
            np.testing.assert_array_equal(seen[t], obs.astype(seen.dtype))
            np.testing.assert_array_equal(out.valid[t], ~resetting)
            obs, reward, terminated, truncated, _ = again.step(
                sampler.model.distribution.to_env(out.action[t])
            )
            np.testing.assert_array_equal(out.reward[t], np.asarray(reward, np.float32))
            np.testing.assert_array_equal(out.terminated[t], terminated)
            np.testing.assert_array_equal(out.truncated[t], truncated)
            resetting = terminated | truncated
            invalid += (~out.valid[t]).sum()
        np.testing.assert_array_equal(seen[steps], obs.astype(seen.dtype))
    assert invalid > 0


def test_a_film_in_colour_shows_what_the_policy_sees():
    plain = make_vec_env("PongNoFrameskip-v4", 1)
    filmed = make_vec_env("PongNoFrameskip-v4", 1, filmed=True)
    plain.reset(seed=[5])
    filmed.reset(seed=[5])
    for t in range(30):
        action = np.array([t % 6])
        np.testing.assert_array_equal(filmed.step(action)[0], plain.step(action)[0])
    picture = filmed.picture()
    assert picture.shape == (210, 160, 3)
    grey = cv2.resize(
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA
    )
    assert np.abs(grey.astype(int) - plain.step(np.array([0]))[0][0, -2]).mean() < 3
    plain.close()
    filmed.close()


@pytest.mark.parametrize("env", ["BreakoutNoFrameskip-v4", "SeaquestNoFrameskip-v4"])
def test_with_episodic_life_a_lost_life_ends_an_episode_and_the_game_goes_on(env):
    """Against full games that are given the same actions, those of the sampler's own included."""
    short, full = make_vec_env(env, 2, episodic_life=True), make_vec_env(env, 2)
    actions = full.action_space
    assert isinstance(actions, spaces.MultiDiscrete)
    obs, infos = short.reset(seed=[7, 8])
    full.reset(seed=[7, 8])
    lives, lost = infos["lives"], np.zeros(2, bool)
    age = np.full(2, 4)  # frames in the stack that the episode has
    rng = np.random.default_rng(0)
    start = 1 if env.startswith("Breakout") else 0  # FIRE, or NOOP
    ends = {"life": 0, "game": 0}
    for _ in range(900):
        action = rng.integers(actions.nvec)
        obs, reward, terminated, truncated, _ = short.step(action)
        expected = full.step(np.where(lost, start, action))
        age = np.where(lost, 1, np.minimum(age + 1, 4))
        for i in range(2):
            np.testing.assert_array_equal(obs[i, -age[i] :], expected[0][i, -age[i] :])
            assert not obs[i, : -age[i]].any()
        np.testing.assert_array_equal(reward, expected[1])
        over = expected[2] | expected[3]
        lost = (expected[4]["lives"] < lives) & ~over & ~lost
        lives = expected[4]["lives"]
        np.testing.assert_array_equal(terminated, expected[2] | lost)
        np.testing.assert_array_equal(truncated, expected[3])
        for i in np.flatnonzero(terminated).tolist():
            assert (short.extras(i) is None) == lost[i]
            ends["life" if lost[i] else "game"] += 1
    assert ends["life"] > 5
    assert ends["game"] > 0
    short.close()
    full.close()


@pytest.mark.slow
def test_with_episodic_life_logged_returns_are_those_of_full_games():
    config = Config(
        env="BreakoutNoFrameskip-v4", env_num=2, batch_size=1600, minibatch_size=2,
        network="nature_cnn", episodic_life=True,
    )  # fmt: skip
    sampler = Sampler(config, 0, 2)
    episodes, rewards, lives = [], np.zeros(2), 0
    for fragment in range(2):
        out = Rollout.empty(sampler.spec, 2)
        ended = sampler.collect(fragment, fragment == 0, out)
        for t in range(config.steps_per_rollout):
            rewards += out.reward[t]
            for n in range(2):
                mine = [e for e in ended if (e.t, e.env) == (t, n)]
                lives += bool(out.terminated[t, n]) and not mine
                for episode in mine:
                    assert episode.episode_return == rewards[n]
                    episodes.append(episode)
                    rewards[n] = 0.0
    assert len(episodes) >= 2
    assert lives == pytest.approx(4 * len(episodes), abs=8)  # five lives a game
    sampler.close()


def test_evaluation_plays_full_games():
    config = Config(env="BreakoutNoFrameskip-v4", episodic_life=True)
    assert config.env_options(range(2)) == {"episodic_life": True}
    assert config.evaluation_options(range(2)) == {}


@pytest.mark.parametrize(
    ("env", "shape"),
    [
        ("tests.image_envs:BinaryFirst", (2, 12, 12)),
        ("tests.image_envs:BinaryLast", (2, 12, 12)),
        ("tests.image_envs:ManyChannels", (5, 20, 24)),
        ("tests.image_envs:SaysChannels", (8, 8, 8)),
    ],
)
def test_images_come_to_channels_first_and_to_bytes(env, shape):
    """The toy's channel c is c + 1 in its upper left quarter; of zeros and ones, channel 1 is 1."""
    assert spaces_of(env).observation == gymnasium.spaces.Box(0, 255, shape, np.uint8)
    venv = make_vec_env(env, 1)
    image = venv.reset()[0][0]
    quarter = image[:, : shape[1] // 2, : shape[2] // 2]
    binary = "Binary" in env
    for c in range(shape[0]):
        assert (quarter[c] == (255 * c if binary else c + 1)).all()
    assert not image[:, shape[1] // 2 :].any()


def test_an_image_whose_channels_cannot_be_told_is_refused():
    with pytest.raises(UnsupportedEnv, match=r"shape \(8, 8, 8\).*\"channels\""):
        spaces_of("tests.image_envs:AnyChannels")


def test_families():
    assert family_of("ALE/MsPacman-v5") == "atari"
    assert family_of("Ant-v4") == "mujoco"
    assert family_of("Acrobot-v1") == "classic"
    assert family_of("BipedalWalker-v3") == "box2d"
    assert family_of("FrozenLake-v1") == "custom"
    assert family_of("some.module:Env") == "custom"


def test_an_unknown_id_gets_its_near_matches():
    with pytest.raises(UnknownEnv, match=r"HalfCheetah-v4"):
        make_vec_env("HalfCheeta-v4", 1)
    for wrong in ("PonNoFrameskip-v4", "PongDeterministic-v4", "pong"):
        with pytest.raises(UnknownEnv, match=r"PongNoFrameskip-v4|ALE/Pong-v5"):
            make_vec_env(wrong, 1)
    with pytest.raises(UnknownEnv, match="no module 'nowhere'"):
        make_vec_env("nowhere:Env", 1)
    with pytest.raises(UnknownEnv, match="has no 'Missing'"):
        make_vec_env("tests.toy_envs:Missing", 1)


def test_mujoco_does_not_time_the_parts_of_a_step():
    envs = MujocoEnvs("Hopper-v4", 1)
    envs.reset(seed=0)
    envs.step(np.zeros((1, 3)))
    timed = envs._env.data.timer[mujoco.mjtTimer.mjTIMER_STEP]
    assert timed.number > 0
    assert timed.duration == 0
