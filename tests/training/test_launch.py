from __future__ import annotations

import signal

import pytest

from settings.config import Config
from settings.sources import parse
from training import launch
from training.launch import _in_store, _launch, _Start
from training.signals import STOPS


@pytest.mark.parametrize(
    ("first", "second", "code", "says"),
    [
        ("time.sleep(60)", "sys.exit(2)", 2, ""),  # it was still on its way to the same refusal
        ("sys.exit(2)", "time.sleep(60)", 2, ""),
        ("time.sleep(1); sys.exit(75)", "os.kill(os.getpid(), 9)", 75, "trainer 1 was killed by signal 9"),
        ("sys.exit(0)", "time.sleep(60)", 75, "trainer 1 was killed by signal 15"),
        ("sys.exit(0)", "sys.exit(0)", 0, ""),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_a_trainer_that_says_why(
    first, second, code, says, capsys, monkeypatch
):
    monkeypatch.setattr(launch, "_PATIENCE_S", 0.5)
    programs = [f"import os, sys, time; {program}" for program in (first, second)]
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        got = _launch(2, lambda rank, _: _Start({}, (), ("-c", programs[rank])), {0, 1})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert got == code
    assert says in said if says else said == ""


def test_trainers_of_a_store_wait_for_it_as_long_as_the_first_one():
    config = Config(env="CartPole-v1", store="embedded", trainers=2, store_timeout=600.0)
    start = _in_store(config, "redis://127.0.0.1:6379", "abc", "start", 1)
    assert parse(start.command[1:]).store_timeout == 600.0
