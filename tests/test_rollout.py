from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollout import Rollout, RolloutSpec, spread


@given(st.integers(1, 200), st.data())
def test_environments_are_spread_evenly_and_all_of_them(envs, data):
    samplers = data.draw(st.integers(1, envs))
    ranges = spread(envs, samplers)
    assert [n for first, last in ranges for n in range(first, last)] == list(range(envs))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 1000))
def test_stacks_of_frames_are_rebuilt_from_single_ones(seed):
    """Against a deque of frames that is emptied at every reset."""
    rng = np.random.default_rng(seed)
    steps, envs = 12, 2
    spec = RolloutSpec(steps, (1, 1), "uint8", (), "int64", frame_stack=4)
    rollout = Rollout.empty(spec, envs)
    stack = rng.integers(1, 255, (envs, 4, 1, 1)).astype("uint8")
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
    np.testing.assert_array_equal(rollout.observations(), expected)


def test_columns_are_views():
    rollout = Rollout.empty(RolloutSpec(3, (2,), "float32", (1,), "float32"), 4)
    rollout.columns(1, 3).obs[:] = 7
    assert rollout.obs[:, 1:3].min() == 7
    assert rollout.obs[:, [0, 3]].max() == 0


def test_reset_rows_are_no_steps():
    rollout = Rollout.empty(RolloutSpec(3, (2,), "float32", (1,), "float32"), 4)
    rollout.valid[:] = True
    rollout.valid[1, 2] = False
    assert rollout.steps == 11
