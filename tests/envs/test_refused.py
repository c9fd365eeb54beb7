from __future__ import annotations

import pytest

from envs import BadEnvironment, UnsupportedEnv, make_vec_env, spaces_of


def test_what_cannot_be_trained_on_is_said():
    with pytest.raises(UnsupportedEnv, match="MultiDiscrete"):
        make_vec_env("tests.toy_envs:ManyBits", 1)
    for env, reason in (
        ("WholeNumbers", "a Box of floats"),
        ("FromOne", "begins at 0"),
        ("Growing", "whose size changes"),
        ("MaskTooLong", "give it 2 entries"),
        ("MaskOfParts", "give it 2 entries"),
        ("MaskOfFloats", "leave it out"),
        ("MaskAlone", "a part that the policy sees"),
    ):
        with pytest.raises(UnsupportedEnv, match=reason):
            make_vec_env(f"tests.refused_envs:{env}", 1)
    for env, reason in (
        ("NeedsArguments", r"cannot be made without arguments: TypeError: .*'size'"),
        ("OtherObservation", r"cannot be reset .*: ValueError"),
        ("WithoutOptions", r"cannot be reset .*: TypeError: .*'options'.*line \d+\)$"),
    ):
        with pytest.raises(BadEnvironment, match=reason):
            spaces_of(f"tests.refused_envs:{env}", resets=True)
    for env, reason in (
        ("tests.refused_envs:WithParts", "have hidden, policy: give one of these"),
        ("tests.toy_envs:ConstantReward", "have no parts: give an environment with a Dict"),
    ):
        with pytest.raises(UnsupportedEnv, match=f"critic_obs is 'secret', but .*{reason}"):
            spaces_of(env, critic_obs="secret")
    with pytest.raises(UnsupportedEnv, match="not a subclass"):
        make_vec_env("tests.toy_envs:np", 1)
    with pytest.raises(UnsupportedEnv, match="takes no action mask"):
        make_vec_env("tests.toy_envs:Masked", 1, memory=4)
    for env in ("HalfCheetah-v3", "Pusher-v4"):  # Pusher-v4 would need a MuJoCo before 3
        newest = f"give --env {env[:-1]}5"
        with pytest.raises(BadEnvironment, match=f"{env} cannot be made: .*: {newest}$"):
            spaces_of(env)
