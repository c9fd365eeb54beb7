from __future__ import annotations

import pytest
import torch

from learning.hardware import choose_compile, choose_device
from settings.config import Config, ConfigError


def test_compiling_is_for_runs_that_are_long_enough(monkeypatch):
    assert not choose_compile(Config(train_total_steps=100_000), "cpu")[0]
    assert choose_compile(Config(train_total_steps=10_000_000), "cpu")[0]
    assert not choose_compile(Config(train_total_steps=10_000_000, compile="off"), "cpu")[0]
    wanted, note = choose_compile(Config(network="gridnet", compile="on"), "cpu")
    assert not wanted
    assert "network gridnet is not compiled" in note
    assert choose_compile(Config(network="lstm", compile="on"), "cpu")[0]
    assert choose_compile(Config(network="impala", compile="on"), "cuda")[0]
    assert not choose_compile(Config(network="impala", compile="on"), "cpu")[0]
    assert not choose_compile(Config(network="lstm", compile="on"), "cuda")[0]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    wanted, note = choose_compile(Config(compile="on"), "cpu")
    assert not wanted
    assert "no C++ compiler" in note


def test_a_gpu_that_is_not_there_is_an_error_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(Config()) == choose_device(Config(device="cpu")) == "cpu"
    with pytest.raises(ConfigError, match="device is cuda, but torch finds no GPU"):
        choose_device(Config(device="cuda"))
