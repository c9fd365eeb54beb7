"""How a model acts in a few environments."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from model import build_model
from settings.config import Config


@pytest.mark.parametrize("settings", [{}, {"network": "lstm"}])
def test_a_copy_acts_by_its_own_weights(settings):
    model = build_model(Config(env="Pendulum-v1", **settings))
    model.prepare_to_act()
    obs, state = np.ones((2, 3)), model.initial_state(2)
    before = model.act(obs, None, None, state).action
    other = copy.deepcopy(model)
    np.testing.assert_array_equal(other.act(obs, None, None, state).action, before)
    other.set_weights({name: 3 * array + 1 for name, array in other.get_weights().items()})
    assert not np.allclose(other.act(obs, None, None, state).action, before)
    np.testing.assert_array_equal(model.act(obs, None, None, state).action, before)
