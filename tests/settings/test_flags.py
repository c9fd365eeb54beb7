"""The command line, as a user types it."""

from __future__ import annotations

import pytest

from settings.config import FIELDS, ConfigError
from settings.flags import _ELSEWHERE, read_flags


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("--seed 3 --gamma=0.9", {"seed": 3, "gamma": 0.9}),
        ("--env_num 4 --env-num 5", {"env_num": 5}),
        ("--env CartPole-v1 --env HalfCheetah-v4", {"env": "HalfCheetah-v4"}),
        ("--hidden_sizes 256 128 --seed 1", {"hidden_sizes": (256, 128), "seed": 1}),
        ("--opponents coacAI:2 --opponents rojo", {"opponents": ("rojo",)}),
        ("--initial_log_std -0.5", {"initial_log_std": -0.5}),
        ("--continuous_action --shared_trunk true", {"continuous_action": True, "shared_trunk": True}),
        ("--no_shared_trunk --no-noisy-layers", {"shared_trunk": False, "noisy_layers": False}),
        ("--train_total_steps 1e6 --learning_rate 3e-4",
         {"train_total_steps": 1_000_000, "learning_rate": 3e-4}),
        ("--samplers None", {"samplers": None}),
        ("--seed 1234567890123456789", {"seed": 1234567890123456789}),
    ],
)  # fmt: skip
def test_flags_are_settings(arguments, settings):
    assert read_flags(arguments.split()) == settings


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--gama 0.9", "no setting --gama: did you mean --gamma"),
        ("--zzz", "no setting --zzz: --help"),
        ("--SEED 3", "did you mean --seed?"),
        ("--lr 0.1", "did you mean --learning_rate?"),  # as other libraries name it
        ("--steps 5", "did you mean --train_total_steps?"),
        ("--num-envs 4", "did you mean --env_num?"),
        ("--no_gamma", "no setting --no_gamma"),
        ("--seed abc", "seed is abc, but must be a whole number of at least 0"),
        ("--seed", "--seed needs a value: a whole number of at least 0"),
        ("--seed=", "--seed needs a value: a whole number of at least 0"),
        ("--shared_trunk=", "--shared_trunk needs a value: true or false"),
        ("--seed 1 2", "--seed takes one value, but 1 2 are 2"),
        ("--hidden_sizes", "--hidden_sizes needs a value: a list"),
        ("--hidden_sizes 64 0", "hidden_sizes is 64 0, but must be a list"),
        ("--hidden_sizes 64,64", "give it as --hidden_sizes 64 64"),
        ("--device gpu", "device is gpu, but must be auto or cpu or cuda"),
        ("--shared_trunk maybe", "shared_trunk is maybe, but must be true or false"),
        ("CartPole-v1 --seed 1", "'CartPole-v1' follows no flag"),
        ("--learning_rate inf", "learning_rate is inf"),
    ],
)
def test_a_flag_that_cannot_be_says_why(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_flags(arguments.split())


def test_the_names_of_other_libraries_are_settings_here():
    assert set(_ELSEWHERE.values()) <= FIELDS
    assert not FIELDS & _ELSEWHERE.keys()
