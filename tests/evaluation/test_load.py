from __future__ import annotations

import numpy as np
import pytest

from common import checkpoint
from evaluation.load import load_policy
from settings.config import ConfigError
from tests.evaluation.untrained import untrained


def test_a_policy_has_its_checkpoints_weights_and_the_runs_settings(tmp_path):
    folder = untrained("CartPole-v1", tmp_path, hidden_sizes=(8,))
    saved = checkpoint.load(folder / "checkpoints" / "last")
    arrays = {name: array + 1 for name, array in saved.arrays.items()}
    checkpoint.write(folder / "checkpoints" / "best", arrays, {"global_step": 7})
    last, best = load_policy(folder), load_policy(folder, "best")
    assert (last.saved.path.name, last.saved.step, last.complaints) == ("update-00000001", 0, [])
    assert (best.saved.path.name, best.saved.step) == ("best", 7)
    assert last.config.hidden_sizes == (8,)
    for name, array in last.model.get_weights().items():
        np.testing.assert_array_equal(best.model.get_weights()[name], array + 1)


def test_a_shared_trunk_is_kept_once_and_read_where_it_was_kept_twice(tmp_path):
    folder = untrained("CartPole-v1", tmp_path, shared_trunk=True)
    arrays = checkpoint.load(folder / "checkpoints" / "last").arrays
    assert not any("critic" in name for name in arrays)
    twice = {name.replace("/actor.", "/critic."): array for name, array in arrays.items()} | arrays
    assert len(twice) > len(arrays)
    checkpoint.write(folder / "checkpoints" / "best", twice, {"global_step": 7})
    model = load_policy(folder, "best").model
    assert model.critic is model.actor
    for name, array in model.get_weights().items():
        np.testing.assert_array_equal(arrays[f"model/{name}"], array)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    folder = untrained("CartPole-v1", tmp_path)
    newer = folder / "checkpoints" / "update-00000002"
    newer.mkdir()
    policy = load_policy(folder)
    assert policy.saved.path.name == "update-00000001"
    assert [str(newer) in complaint for complaint in policy.complaints] == [True]


def test_errors_say_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="not the folder of a run"):
        load_policy(tmp_path)
    folder = untrained("CartPole-v1", tmp_path)
    with pytest.raises(checkpoint.BadCheckpoint, match=r"has no best checkpoint.*--checkpoint"):
        load_policy(folder, "best")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("- 64", "- 32"))
    with pytest.raises(checkpoint.BadCheckpoint, match=r"does not fit.*config\.yaml"):
        load_policy(folder)
