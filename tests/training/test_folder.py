from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.sources import ROOT, digest, sources
from settings.config import Config, ConfigError
from settings.sources import load_run
from training.folder import run_folder
from training.summary import note_resume


def config_for(run_dir: Path | None, **settings) -> Config:
    return Config(
        env="CartPole-v1", run_dir=None if run_dir is None else str(run_dir), **settings
    )  # fmt: skip


def test_a_new_folder_holds_everything_to_repeat_the_run(tmp_path):
    with run_folder(config_for(tmp_path / "a" / "run", gamma=0.5)) as run_dir:
        saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["config"]["gamma"] == 0.5
    assert saved["versions"]["torch"].startswith("2.")
    assert saved["project"]["sources"] == digest(sources())
    assert f'version = "{saved["project"]["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert saved["command"] == sys.argv


def test_two_runs_never_share_a_folder(tmp_path):
    config = config_for(tmp_path / "run")
    with run_folder(config):
        with pytest.raises(ConfigError, match="a run that still runs: wait for its end or stop it"):
            run_folder(config).__enter__()
        with pytest.raises(ConfigError, match="still runs"):
            run_folder(dataclasses.replace(config, resume=config.run_dir)).__enter__()
    with run_folder(dataclasses.replace(config, gamma=0.5)) as folder:  # nothing had begun in it
        assert load_run(folder).gamma == 0.5
        (folder / "checkpoints").mkdir()
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").write_text("gamma: 0.5\n")
    for given in (str(own / "config.yaml"), None):
        with pytest.raises(ConfigError, match=r"has a config\.yaml of your own"):
            run_folder(dataclasses.replace(config_for(own), config=given)).__enter__()
    assert (own / "config.yaml").read_text() == "gamma: 0.5\n"
    with pytest.raises(
        ConfigError, match=f"already holds a run: go on with it by --resume {tmp_path}"
    ):
        run_folder(config).__enter__()


def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_folder(config_for(None)) as one, run_folder(config_for(None)) as two, \
         run_folder(config_for(None)) as three:  # fmt: skip
        assert len({one, two, three}) == 3
        assert all((folder / "config.yaml").exists() for folder in (one, two, three))


def test_the_lock_ends_with_a_process_that_is_killed(tmp_path):
    code = (
        "import sys, os, signal; from settings.config import Config;"
        "from training.folder import run_folder;"
        "run_folder(Config(env='CartPole-v1', run_dir=sys.argv[1])).__enter__();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run_dir = str(tmp_path / "run")
    assert subprocess.run([sys.executable, "-c", code, run_dir], cwd=ROOT).returncode == -9
    with run_folder(config_for(tmp_path / "run", resume=run_dir)):
        pass


def test_a_resume_is_noted_and_config_stays_as_it_was(tmp_path):
    config = config_for(tmp_path, train_total_steps=1000)
    with run_folder(config):
        pass
    before = (tmp_path / "config.yaml").read_bytes()
    for total, samplers in ((2000, None), (2000, 1)):
        asked = dataclasses.replace(
            load_run(tmp_path), resume=str(tmp_path), run_dir=str(tmp_path),
            train_total_steps=total, samplers=samplers,
        )  # fmt: skip
        with run_folder(asked):  # a resume that fails before its run stands changes nothing
            assert load_run(tmp_path).train_total_steps == (1000 if samplers is None else 2000)
            note_resume(tmp_path, load_run(tmp_path), asked)
    assert (tmp_path / "config.yaml").read_bytes() == before
    resumes = yaml.safe_load((tmp_path / "resumes.yaml").read_text())
    assert [resume["config"] for resume in resumes] == [
        {"train_total_steps": 2000},
        {"samplers": 1},
    ]
    assert resumes[0]["command"] == sys.argv
    now = load_run(tmp_path)
    assert (now.train_total_steps, now.samplers) == (2000, 1)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir cannot be used: .*give another --run_dir"):
        run_folder(config_for(tmp_path / "file" / "run")).__enter__()
    assert os.listdir(tmp_path) == ["file"]
