from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning.batches import observations
from rollout import Rollout, RolloutSpec


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
