"""`--dry_run` tells what a run would be, and starts nothing."""

from __future__ import annotations

import dataclasses

import pytest

from settings.config import FIELDS, ConfigError
from settings.sources import parse


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--dry_run"])
    assert end.value.code == 0
    return capsys.readouterr().out


def sources_in(text: str) -> dict[str, str]:
    """Setting -> what stands behind it; the lines between the groups are left out."""
    lines = [line for line in text.splitlines() if line[0] != "#"]
    return {line.partition(":")[0]: line.partition("  # ")[2] for line in lines}


def test_every_setting_is_printed_with_its_source(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("gamma: 0.5\n")
    text = printed(
        ["--env", "HalfCheetah-v4", "--config", str(file), "--env_num", "33", "--seed", "7"], capsys
    )
    sources = sources_in(text)
    assert sources.keys() == FIELDS - {"resume", "trust", "config"}
    assert sources["seed"] == "flag"
    assert sources["gamma"] == str(file)
    assert sources["gae_lambda"] == "presets/mujoco.yaml, HalfCheetah-v4"
    assert sources["update_epochs"] == "presets/mujoco.yaml, family"
    assert sources["batch_size"] == "follows from others"  # of 33 environments
    assert sources["clip_range"] == "default"


def test_without_flags_everything_has_a_source_too(capsys):
    assert set(sources_in(printed([], capsys)).values()) == {
        "default",
        "presets/atari.yaml, family",
        "presets/atari.yaml, PongNoFrameskip-v4",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "CartPole-v1", "--policy_lag", "0"],
        ["--env", "HalfCheetah-v4", "--preset", "cleanrl", "--env_num", "1"],
        ["--env", "ALE/Pong-v5", "--clip_schedule", "linear", "--run_dir", "it's here: #1"],
    ],
)
def test_what_is_printed_gives_the_same_settings_as_a_file(arguments, capsys, tmp_path):
    file = tmp_path / "printed.yaml"
    file.write_text(printed(arguments, capsys))
    assert parse(["--config", str(file)]) == dataclasses.replace(parse(arguments), config=str(file))


def test_hyphens_will_do_as_in_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--env", "CartPole-v1", "--dry-run"])
    assert end.value.code == 0
    assert capsys.readouterr().out == printed(["--env", "CartPole-v1"], capsys)


def test_a_mistake_is_found_by_it_too():
    with pytest.raises(ConfigError, match="gae_lambda is 2"):
        parse(["--env", "CartPole-v1", "--gae_lambda", "2", "--dry_run"])
