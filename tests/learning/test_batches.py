from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning.batches import Batches, EpochMemory, observations
from rollout import Rollout, RolloutSpec
from settings.config import Config


@given(st.integers(0, 1000), st.integers(1, 12))
def test_stacks_of_frames_are_rebuilt_from_single_ones(seed, steps):
    """Against a deque of frames that is emptied at every reset."""
    rng = np.random.default_rng(seed)
    envs = 2
    spec = RolloutSpec(steps, (1, 1), "uint8", (), "int64", frame_stack=4)
    rollout = Rollout.empty(spec, envs)
    stack = rng.integers(1, 255, (envs, 4, 1, 1)).astype("uint8")
    assert rollout.history is not None
    rollout.history[:] = stack[:, :-1].swapaxes(0, 1)
    expected = []
    rollout.valid[:] = rng.random((steps, envs)) < 0.7
    for t in range(steps + 1):
        rollout.obs[t] = stack[:, -1]
        expected.append(stack.copy())
        frame = rng.integers(1, 255, (envs, 1, 1)).astype("uint8")
        stack = np.concatenate([stack[:, 1:], frame[:, None]], 1)
        if t < steps:
            stack[~rollout.valid[t], :3] = 0  # obs[t+1] is the first frame after a reset
    np.testing.assert_array_equal(observations(rollout, torch.device("cpu")), expected)


@pytest.mark.parametrize(
    ("spec", "network", "shares"),
    [
        (RolloutSpec(16, (3,), "float32", (2,), "float32", mask_size=4), "mlp", 2),
        (RolloutSpec(16, (36, 36), "uint8", (), "int64", frame_stack=4), "nature_cnn", 1),
        (RolloutSpec(16, (36, 36), "uint8", (), "int64", frame_stack=4), "gridnet", 1),
        (RolloutSpec(16, (3,), "float32", (), "int64", state_size=5), "lstm", 1),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_an_epoch_in_the_memory_of_earlier_ones_is_as_in_its_own(spec, network, shares):
    rng, envs = np.random.default_rng(0), 4
    rollout = Rollout.empty(spec, envs)
    for name in spec.arrays(envs):
        array = getattr(rollout, name)
        array[:] = rng.integers(0, 2 if array.dtype == bool else 100, array.shape)
    config = Config(network=network, env_num=envs, batch_size=64, minibatch_size=32)
    used, fresh = (Batches(config, rollout, torch.device("cpu"), shares=shares) for _ in range(2))
    for epoch in range(3):
        names = ("advantage", "value_target", "old_value", "importance", "predicted")
        of_epoch = {name: rng.random((16, envs), np.float32) for name in names}
        used.put(**of_epoch)
        found = used.epoch(np.random.default_rng(epoch))
    fresh.put(**of_epoch)
    expected = fresh.epoch(np.random.default_rng(epoch))
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(sum(found, ()), sum(expected, ()), strict=True):
        for name, field in theirs._asdict().items():
            if field is not None:
                assert torch.equal(getattr(ours, name), field), name
                assert getattr(ours, name).stride() == field.stride(), name


def test_updates_share_one_memory_until_their_shapes_change():
    memory, lists = EpochMemory(), []
    for envs in (4, 4, 8, 4):
        config = Config(env_num=envs, batch_size=16 * envs, minibatch_size=32)
        rollout = Rollout.empty(RolloutSpec(16, (3,), "float32", (), "int64"), envs)
        rollout.obs[:] = np.random.default_rng(len(lists)).random(rollout.obs.shape)
        batches = Batches(config, rollout, torch.device("cpu"), memory=memory)
        batches.put(**dict.fromkeys(("advantage", "value_target", "old_value"), rollout.reward))
        for epoch in range(2):
            lists.append(batches.epoch(np.random.default_rng(epoch)))
            learned = np.concatenate([share.obs for (share,) in lists[-1]])
            expected = rollout.obs[:16].reshape(-1, 3)
            np.testing.assert_array_equal(np.sort(learned, 0), np.sort(expected, 0))
    places = [id(one) for one in lists]
    assert places[0] == places[1] == places[2] == places[3]
    assert places[4] == places[5]
    assert len({places[0], places[4], places[6]}) == 3
