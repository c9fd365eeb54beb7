"""Environments whose state can be saved go on as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest

from envs import BadEnvironment, make_vec_env, spaces_of

SAVING = [
    ("HalfCheetah-v4", {}),
    ("Hopper-v5", {}),
    ("Walker2d-v4", {}),
    ("Ant-v4", {}),
    ("Ant-v5", {}),
    ("Reacher-v4", {}),
    ("Pusher-v5", {}),
    ("Humanoid-v5", {}),
    ("HumanoidStandup-v4", {}),
    ("Swimmer-v5", {}),
    ("InvertedPendulum-v5", {}),
    ("InvertedDoublePendulum-v4", {}),
    ("CartPole-v1", {}),
    ("Acrobot-v1", {}),
    ("MountainCar-v0", {}),
    ("MountainCarContinuous-v0", {}),
    ("Pendulum-v1", {}),
    ("CartPole-v1", {"memory": 4}),
    ("HalfCheetah-v4", {"memory": 4}),
    ("tests.toy_envs:Saving", {}),
    ("tests.refused_envs:Wrapped", {}),
    ("tests.refused_envs:Limited", {}),
    ("tests.refused_envs:MixedIn", {}),
]


@pytest.mark.parametrize(("env", "options"), SAVING)
def test_other_environments_go_on_from_a_saved_state_bit_for_bit(env, options):
    """Environments 3 and 5 of eight, put into a pair that was never reset, past episodes' ends."""
    eight, pair = make_vec_env(env, 8, **options), make_vec_env(env, 2, **options)
    assert spaces_of(env, **options).saves_state
    columns = np.array([3, 5])
    eight.reset(seed=list(range(8)))
    eight.action_space.seed(1)
    before = np.stack([eight.action_space.sample() for _ in range(37)])
    for action in before:
        eight.step(action)
    saved = eight.get_state()
    assert all(array.dtype.kind in "biuf" and len(array) == 8 for array in saved.values())
    limit = eight.episode_limit or 0
    for steps in (300, min(limit, 1000) if limit <= 200 or "HalfCheetah" in env else 0):
        pair.set_state({name: array[columns] for name, array in saved.items()})
        for _ in range(steps):
            action = eight.action_space.sample()
            expected = eight.step(action)[:4]
            stepped = pair.step(action[columns])[:4]
            for ours, theirs in zip(stepped, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs)[columns])
            if pair.action_mask is not None and eight.action_mask is not None:
                np.testing.assert_array_equal(pair.action_mask, eight.action_mask[columns])
        saved = eight.get_state()
    eight.close()
    pair.close()


@pytest.mark.parametrize(
    "env", ["PongNoFrameskip-v4", "LunarLander-v3", "FrozenLake-v1", "tests.toy_envs:Counter",
            "tests.toy_envs:HiddenVelocity", "microrts-8x8"],
)  # fmt: skip
def test_environments_that_cannot_be_saved_say_so(env):
    assert not spaces_of(env).saves_state
    with pytest.raises(NotImplementedError, match="cannot save its state"):
        make_vec_env(env, 1).get_state()


def test_a_wrappers_own_state_is_saved_with_that_of_what_it_wraps():
    venv = make_vec_env("tests.refused_envs:MixedIn", 2)
    venv.reset(seed=[1, 2])
    venv.step(venv.action_space.sample())
    states = venv.get_state()
    assert [array.tolist() for name, array in states.items() if name.endswith("steps")] == [[1, 1]]
    assert len(states) > 2


def test_a_state_of_the_users_own_that_is_no_dictionary_of_numbers_is_refused():
    for env, message in (
        ("SavingAList", "returns a list"),
        ("SavingText", "'name' of dtype <U"),
        ("SavingLongDoubles", "'x' of dtype float128"),
        ("OtherShapes", r"returns past \(\d+,\) in one environment and past \(\d+,\) in another"),
        ("OtherGenerator", "np_random is a generator of MT19937, whose state cannot be saved"),
    ):
        venv = make_vec_env(f"tests.refused_envs:{env}", 3)
        venv.reset(seed=[1, 2, 3])
        with pytest.raises(BadEnvironment, match=message):
            venv.get_state()


@pytest.mark.parametrize(
    ("env", "limit"),
    [
        ("HalfCheetah-v4", 1000), ("Pendulum-v1", 200), ("PongNoFrameskip-v4", 27_000),
        ("microrts-8x8", 2000), ("tests.toy_envs:Counter", None),
    ],
)  # fmt: skip
def test_the_limit_of_an_episode_is_told_where_it_is_known(env, limit):
    assert spaces_of(env).episode_limit == limit
