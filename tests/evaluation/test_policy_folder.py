from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from common import checkpoint
from evaluation.follow import Checkpoints
from evaluation.load import load_policy
from evaluation.policy_folder import export_folder
from settings.sources import parse
from tests.evaluation.untrained import untrained
from training.restoring import restored


def test_a_policys_folder_plays_as_the_run_does_and_holds_nothing_else(tmp_path):
    run = untrained("Pendulum-v1", tmp_path, hidden_sizes=(8,), key="mine", run_dir="here")
    saved = checkpoint.load(run / "checkpoints" / "last")
    arrays = saved.arrays | {"adam/moments": np.ones(1000, np.float32)}
    checkpoint.save(run / "checkpoints", 7, arrays, {"update": 7, "global_step": 70})
    folder = tmp_path / "policies" / "Pendulum-v1"
    export_folder(run, load_policy(run).saved, folder)
    policy = load_policy(folder)
    assert (policy.saved.path.name, policy.saved.step) == ("update-00000007", 70)
    for name, array in load_policy(run).model.get_weights().items():
        np.testing.assert_array_equal(policy.model.get_weights()[name], array)
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "manifest.json", *checkpoint.FILES}
    kept = checkpoint.load_newest(folder / "checkpoints")[0].arrays.keys()
    assert kept == {name for name in saved.arrays if name.startswith(checkpoint.MODEL)}
    settings = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert settings["hidden_sizes"] == [8]
    assert not {"key", "run_dir", "xparl_addr", "store"} & settings.keys()


def test_following_a_policys_folder_ends_with_its_one_version(tmp_path):
    folder = tmp_path / "policy"
    run = untrained("Pendulum-v1", tmp_path)
    export_folder(run, load_policy(run).saved, folder)
    source = Checkpoints(folder, load_policy(folder).model, print)
    assert source.newer() is not None
    assert source.has_ended()
    assert source.newer() is None


def test_an_export_that_is_ended_leaves_an_empty_folder(tmp_path, monkeypatch):
    run = untrained("Pendulum-v1", tmp_path)
    saved = load_policy(run).saved
    monkeypatch.setattr(yaml, "safe_dump", lambda *args, **options: sys.exit(143))
    with pytest.raises(SystemExit):
        export_folder(run, saved, tmp_path / "policy")
    assert list((tmp_path / "policy").iterdir()) == []


def test_a_policys_folder_cannot_be_trained_on(tmp_path):
    folder = tmp_path / "policy"
    run = untrained("Pendulum-v1", tmp_path)
    export_folder(run, load_policy(run).saved, folder)
    config = parse(["--resume", str(folder)])
    with pytest.raises(checkpoint.BadCheckpoint, match=r"holds a policy alone.* play it"):
        restored(config, folder, None)  # pyright: ignore[reportArgumentType]
