"""Code that a run's folder or a file of settings names is imported only where the user wants it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from settings.config import Config, ConfigError
from settings.sources import load_run, parse
from settings.trust import remember
from training.folder import run_folder

REFUSED = r"{} {}:Class of .* is code: it would import the module {} .*Give --trust if you know"
CODE = [("env", "strangers"), ("network", "strangers")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a module that tells of its import; the home folder is another."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "strangers.py").write_text("open('executed', 'w')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(setting: str, module: str, *flags: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED.format(setting, module, module)):
        parse(flags)
    assert not Path("executed").exists()


def settings_with(setting: str, module: str) -> dict:
    config = Config(env="CartPole-v1", run_dir="run")
    return config.to_dict() | {setting: f"{module}:Class", "trust": True}


@pytest.mark.parametrize(("setting", "module"), CODE)
def test_a_strangers_folder_is_resumed_only_where_it_is_trusted(setting, module):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump({"config": settings_with(setting, module)}))
    refused(setting, module, "--resume", "run")
    assert parse(["--resume", "run", f"--{setting}", f"{module}:Class"]).resume == "run"
    assert parse(["--resume", "run", "--trust"]).trust
    assert not load_run(Path("run")).trust
    resumes = [{"config": {"trust": True}}]
    Path("run/resumes.yaml").write_text(yaml.safe_dump(resumes))
    refused(setting, module, "--resume", "run")


@pytest.mark.parametrize(("setting", "module"), CODE)
def test_a_file_of_settings_names_no_code_unasked(setting, module):
    settings = {name: v for name, v in settings_with(setting, module).items() if name != "config"}
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    refused(setting, module, "--config", "mine.yaml")
    refused(setting, module, "--config", "mine.yaml", "--run_dir", "run")


def test_the_users_own_folders_are_remembered(folder):
    with run_folder(Config(env="strangers:Class", run_dir="run", trust=True)):
        pass
    parse(["--resume", "run"])
    parse(["--resume", str(folder / "run")])
    assert not yaml.safe_load(Path("run/config.yaml").read_text())["config"]["trust"]
    known = folder / "home" / ".config" / "dppo" / "own_runs"
    assert (known.stat().st_mode & 0o777, known.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    remember(Path("run"), load_run(Path("run")))
    assert len(known.read_text().splitlines()) == 1
    # a list that others can write to is none of the user's
    known.chmod(0o622)
    refused("env", "strangers", "--resume", "run")
    known.chmod(0o600)
    # another class in the same folder
    whole = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(whole.replace("strangers:", "others:"))
    refused("env", "others", "--resume", "run")
    Path("run/config.yaml").write_text(whole)
    # the same class in a folder that was copied from somewhere
    os.rename("run", "moved")
    refused("env", "strangers", "--resume", "moved")


def test_a_home_that_cannot_be_written_ends_no_run(folder):
    (folder / "home" / ".config").touch()
    with run_folder(Config(env="strangers:Class", run_dir="run")):
        pass
    refused("env", "strangers", "--resume", "run")
