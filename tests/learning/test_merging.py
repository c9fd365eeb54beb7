"""The changes of two trainers, put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from learning.merging import merge
from networks.layers import NoisyLinear, RunningMoments


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = NoisyLinear(2, 2)
        self.moments = RunningMoments((3,))

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy().copy() for name, tensor in self.state_dict().items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)),
    offset=st.sampled_from([0.0, 3.0, -1e4]),
)
def test_moments_are_those_of_the_rows_of_both(sizes, offset):
    generator = np.random.default_rng(sum(sizes))
    parts = [
        torch.from_numpy(generator.normal(offset + i, 1 + i, (n, 3))) for i, n in enumerate(sizes)
    ]
    model = Model()
    model.moments.update(parts[0])
    before = model.arrays()
    model.moments.update(parts[1])
    mine = model.arrays()
    model.load(before)
    model.moments.update(parts[2])
    merged = merge(model, before, mine, model.arrays())
    rows = torch.cat(parts).numpy()
    assert merged["moments.count"] == len(rows)
    if len(rows):
        np.testing.assert_allclose(merged["moments.mean"], rows.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(merged["moments.var"], rows.var(0), rtol=1e-6, atol=1e-9)


def test_changes_of_parameters_are_added_and_noise_is_this_trainers():
    model = Model()
    before = model.arrays()
    mine, theirs = ({n: a + change for n, a in before.items()} for change in (1.0, 10.0))
    merged = merge(model, before, mine, theirs)
    for name, _ in model.named_parameters():
        np.testing.assert_allclose(merged[name], before[name] + 11.0, rtol=1e-6)
    assert np.array_equal(merged["layer.weight_noise"], mine["layer.weight_noise"])
    assert merged.keys() == before.keys()


@pytest.mark.parametrize("nobody", ["mine", "theirs"])
def test_where_one_has_changed_nothing_the_others_weights_remain(nobody):
    model = Model()
    model.moments.update(torch.randn(10, 3, dtype=torch.float64))
    before = model.arrays()
    model.moments.update(torch.randn(10, 3, dtype=torch.float64))
    changed = model.arrays()
    pair = (before, changed) if nobody == "mine" else (changed, before)
    merged = merge(model, before, *pair)
    for name, array in changed.items():
        if "noise" not in name:
            np.testing.assert_allclose(merged[name], array, rtol=1e-9, atol=1e-12)
