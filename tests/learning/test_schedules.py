from __future__ import annotations

import pytest

from learning.schedules import Schedules
from settings.config import Config
from tests.test_algorithm import make_ppo, random_batch


@pytest.mark.parametrize(("end", "expected"), [(0.95, [0.5, 0.725, 0.95]), (None, [0.5, 0.5, 0.5])])
def test_the_mix_weight_goes_linearly_to_its_end(end, expected):
    schedules = Schedules(Config(mix_weight=0.5, mix_weight_end=end))
    assert [schedules.at(p, 0).mix_weight for p in (0.0, 0.5, 1.0)] == pytest.approx(expected)


@pytest.mark.parametrize("joint_loss", ["mix_ratio", "mix_loss"])
def test_a_loss_is_mixed_by_the_weight_of_its_update(joint_loss):
    rising = make_ppo(joint_loss=joint_loss, mix_weight=0.2, mix_weight_end=0.8)
    batch = random_batch(rising)
    early = rising.loss(batch)[0].item()
    rising.set_coefficients(Schedules(rising.config).at(1.0, 0))
    late = make_ppo(joint_loss=joint_loss, mix_weight=0.8)
    assert rising.loss(batch)[0].item() == late.loss(batch)[0].item() != early
