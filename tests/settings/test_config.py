from __future__ import annotations

import re
from typing import Any

import pytest

from common.sources import ROOT
from settings.config import FIELDS, Config, ConfigError
from settings.sources import parse


@pytest.mark.parametrize("env_num", [1, 2, 5, 7, 8, 24, 64, 100, 300])
def test_any_number_of_environments_gives_whole_minibatches_near_the_batch_size(env_num):
    config = parse(["--env", "HalfCheetah-v4", "--env_num", str(env_num)])
    assert config.steps_per_update % config.minibatch_size == 0
    assert config.steps_per_update == config.steps_per_rollout * env_num
    assert config.steps_per_rollout >= 1
    if env_num <= 8:
        assert 0.6 < config.steps_per_update / config.batch_size < 1.7


def test_every_setting_is_read_somewhere():
    folders = ("cluster", "envs", "evaluation", "learning", "networks", "settings", "training")
    paths = [*ROOT.glob("*.py"), *(path for f in folders for path in (ROOT / f).rglob("*.py"))]
    sources = "".join(path.read_text() for path in paths)
    unread = [
        name
        for name in FIELDS
        if not re.search(rf'\b(config|c|self)\.{name}\b|get\("{name}"\)', sources)
    ]
    assert unread == []


def test_a_configuration_checks_and_converts_its_values_wherever_they_come_from():
    as_yaml_has_them: dict[str, Any] = {"hidden_sizes": [8], "max_minutes": 1}
    assert Config(**as_yaml_has_them).hidden_sizes == (8,)
    with pytest.raises(ConfigError, match="gamma is 2, but must be a number from 0 to 1"):
        Config(gamma=2)


def test_asynchronous_samplers_share_environments_evenly():
    assert Config(env_num=10).default_samplers(8) == 8
    assert Config(env_num=10, policy_lag=2).default_samplers(8) == 5
    assert Config(env_num=7, policy_lag=2).default_samplers(4) == 1
