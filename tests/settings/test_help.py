"""`--help` explains every setting, on any terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from settings.config import FIELDS, HINTS
from settings.groups import groups
from settings.sources import parse
from tests.conftest import ROOT


def paragraphs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Setting -> its flag and what is said about it."""
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--help"])
    assert end.value.code == 0
    found = capsys.readouterr().out.split("\n  --")[1:]
    return {text.split()[0].rstrip(","): " ".join(text.split("\n\n")[0].split()) for text in found}


def test_every_setting_is_in_one_group():
    names = [name for group in groups() for name in group.settings]
    assert names == list(HINTS)  # the order of settings files too
    assert all(group.title and all(group.settings.values()) for group in groups())


def test_without_flags_the_defaults_are_those_before_any_preset(capsys):
    helps = paragraphs([], capsys)
    assert helps.keys() == FIELDS
    assert helps["batch_size"] == (
        "batch_size N Steps per update, over all environments. default 2048; a whole number of at"
        " least 1; needs no rollout_steps"
    )
    assert helps["shared_trunk"].startswith("shared_trunk, --no_shared_trunk One trunk")
    assert "device auto|cpu|cuda Device of the learner" in helps["device"]
    assert helps["hidden_sizes"].startswith("hidden_sizes N... Widths")
    assert helps["target_kl"].endswith("Default: never. a number of at least 0")


def test_a_default_that_was_changed_says_where(capsys):
    helps = paragraphs(["--env", "HalfCheetah-v4", "--preset", "cleanrl", "--seed", "7"], capsys)
    assert "default 7 (flag)" in helps["seed"]
    assert "default 1000 (presets/mujoco.yaml, family)" in helps["test_max_steps"]
    assert "default 0.0003 (presets/recipes/cleanrl.yaml)" in helps["learning_rate"]
    assert helps["test_episodes"].endswith("default 10; a whole number of at least 1")


@pytest.mark.parametrize("columns", [5, 80, 120])
def test_lines_fit_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse(["--env", "HalfCheetah-v4", "--help"])
    widest = max(map(len, capsys.readouterr().out.splitlines()))
    assert widest <= columns or columns == 5  # no word fits


def test_help_imports_nothing_that_is_slow():
    code = (
        "import sys; from settings.sources import parse\n"
        "try: parse(['--env', 'CartPole-v1', '--help'])\n"
        "except SystemExit: print('slow:', {'torch', 'parl', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--learning_rate X" in done.stdout
    assert done.stdout.endswith("slow: set()\n")
