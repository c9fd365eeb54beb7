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


def test_carried_rows_are_no_steps_again_but_those_of_a_sampler_that_began_anew_are():
    rollout = Rollout.empty(RolloutSpec(5, (2,), "float32", (1,), "float32"), 4)
    rollout.valid[:] = True
    rollout.carried, rollout.reset = 3, np.array([False, False, True, True])
    assert rollout.steps == 2 * 2 + 2 * 5
