"""The settings of the sample store, and where its password stays."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from settings.config import Config, ConfigError
from settings.sources import parse
from settings.store_url import PASSWORD, StoreAddress, hide_passwords
from settings.store_url import parse as parse_url

LAG = ["--env", "CartPole-v1", "--policy_lag", "2"]


@pytest.fixture(autouse=True)
def _no_password(monkeypatch):
    monkeypatch.setenv(PASSWORD, "before")


@pytest.mark.parametrize(
    ("url", "without", "password"),
    [
        ("redis://host:1/0", "redis://host:1/0", "before"),
        ("redis://:hush@host:1/0", "redis://host:1/0", "hush"),
        ("rediss://me:hu%2Fsh@host:1/0", "rediss://me@host:1/0", "hu/sh"),
        ("redis://me:h@u:sh@host:1/0", "redis://me@host:1/0", "h@u:sh"),
        ("redis://me@host/3", "redis://me@host/3", "before"),
        ("embedded", "embedded", "before"),
    ],
)
def test_the_password_is_taken_out_of_the_url(url, without, password):
    assert Config(store=url).store == without
    assert os.environ[PASSWORD] == password


def test_the_password_is_in_nothing_that_is_shown_or_written(capsys, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"store": "redis://:hush@host:1/0"}))
    for flags in (["--store", "redis://:hush@host:1/0"], ["--config", str(path)]):
        config = parse([*LAG, *flags])
        assert "hush" not in repr(config) + json.dumps(config.to_dict())
        for asked in ("--dry_run", "--help"):
            with pytest.raises(SystemExit):
                parse([*LAG, *flags, asked])
    shown = capsys.readouterr()
    assert "redis://host:1/0" in shown.out
    assert "hush" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://host:1/2", StoreAddress(False, "", "host", 1, 2)),
        ("rediss://m%40e@10.0.0.1:6380/0", StoreAddress(True, "m@e", "10.0.0.1", 6380, 0)),
        ("redis://host", StoreAddress(False, "", "host", 6379, 0)),
        ("redis://[::1]:7/0", StoreAddress(False, "", "::1", 7, 0)),
    ],
)
def test_the_parts_of_a_url(url, address):
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    ["", "host:1", "http://host:1/0", "redis://", "redis://:hush", "redis://host:hush/0", "redis://host:0/0",
     "redis://host:70000/0", "redis://host:1/hush", "redis://host:1/0?password=hush", "redis://[::1/0", "redis://10.0..1:6379/0"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match="such as redis://10") as refused:
        parse([*LAG, "--store", url])
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--xparl_addr", "localhost:8010"], "leave one of them out"),
        (["--ray_address", "auto"], "leave one of them out"),
        (["--policy_lag", "1"], "give --policy_lag 2 or more"),
        (["--trainers", "2", "--trainer_mode", "hogwild"], "leave one of them out"),
        (["--normalize_value"], "give --no_normalize_value"),
        (["--samplers", "3", "--env_num", "8"], "give --samplers 2"),
        (["--carried_steps", "4"], "carried_steps is 4"),
        (["--store_timeout", "0"], "store_timeout is 0"),
        (["--store_compression", "gzip"], "none or zstd"),
        (["--store_fragments", "0"], "store_fragments is 0"),
    ],
)
def test_what_does_not_go_with_a_store_is_refused(flags, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse([*LAG, "--store", "embedded", *flags])


def test_samplers_share_the_environments_evenly_by_default():
    store = ["--env", "CartPole-v1", "--store", "embedded", "--samplers", "3"]
    assert (parse(store).env_num, parse(store).policy_lag) == (9, 4)
    with pytest.raises(ConfigError, match="give --samplers 2"):
        parse([*store, "--env_num", "8"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--join", "a b"], "join is 'a b'"),
        (["--join", "{a}"], "letters, digits"),
        (["--join", "run", "--seed", "3"], "--seed 3 is what the run run decides"),
        (["--join", "run", "--trainers", "2"], "adds one trainer"),
    ],
)
def test_how_a_run_cannot_be_joined(flags, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(["--store", "redis://127.0.0.1:6379/0", *flags])


def test_a_run_is_joined_at_a_store():
    with pytest.raises(ConfigError, match="give its URL as --store"):
        parse(["--join", "run"])


def test_trainers_of_torchrun_cannot_share_a_store(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun starts sum their gradients"):
        parse([*LAG, "--store", "embedded"])


@pytest.mark.parametrize("form", ["--store {}", "--store={}"])
def test_a_password_is_taken_out_of_a_command_line(form, monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    words = ["train.py", *form.format("redis://me:hush@10.0.0.1:6379/0").split(), "--env", "a:b"]
    hide_passwords(words)
    assert words == ["train.py", *form.format("redis://me@10.0.0.1:6379/0").split(), "--env", "a:b"]
    assert os.environ[PASSWORD] == "hush"
