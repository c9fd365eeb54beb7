"""A device that learns otherwise than the CPU is noticed before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from common.errors import UserError
from envs import spaces_of
from networks.precision import choose_bfloat16
from settings.config import Config
from settings.sources import preset
from training import device_check
from training.device_check import (
    BFLOAT16_TOLERANCE,
    TOLERANCE,
    Stepped,
    checked,
    difference,
    step_on,
)

CARTPOLE = spaces_of("CartPole-v1")


def small(env: str, **settings) -> Config:
    sizes = {"env_num": 4, "batch_size": 128, "minibatch_size": 32}
    return dataclasses.replace(preset(env), **{"compile": "off"} | sizes | settings)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("HalfCheetah-v4", {"rnd_coefficient": 1.0, "noisy_layers": True}),
        ("CartPole-v1", {"network": "lstm"}),
        ("CartPole-v1", {"network": "transformer"}),
        ("PongNoFrameskip-v4", {"precision": "bfloat16"}),
        ("microrts-8x8", {"opponents": ("passiveAI",)}),
        ("microrts-8x8", {"opponents": ("passiveAI",), "policy": "unit_selection",
                          "network": "impala", "precision": "float32"}),
    ],
)  # fmt: skip
def test_the_cpu_agrees_with_itself_and_another_seed_does_not(env, settings):
    config = small(env, **settings)
    found = spaces_of(config.env, **config.env_options())
    expected = step_on("cpu", dataclasses.replace(config, precision="float32"), found)
    off = difference(step_on("cpu", config, found), expected)
    assert off <= (
        BFLOAT16_TOLERANCE if choose_bfloat16(config, torch.device("cpu")) else TOLERANCE
    )
    other = dataclasses.replace(config, seed=config.seed + 1)
    assert not difference(step_on("cpu", other, found), expected) <= BFLOAT16_TOLERANCE


def of_one(step: Stepped, factor: float) -> dict[str, torch.Tensor]:
    """The gradient, with that of a layer that has little share in it multiplied."""
    return step.gradient | {"actor.0.weight": step.gradient["actor.0.weight"] * factor}


WRONG: dict[str, Callable[[Stepped], Stepped]] = {
    "its norm is doubled": lambda step: step._replace(norm=2 * step.norm),
    "a layer's gradient is turned": lambda step: step._replace(gradient=of_one(step, -1)),
    "a layer's gradient is NaN": lambda step: step._replace(gradient=of_one(step, float("nan"))),
    "nothing changes": lambda step: step._replace(
        change={name: torch.zeros_like(change) for name, change in step.change.items()}
    ),
    "it climbs": lambda step: step._replace(
        change={name: -change for name, change in step.change.items()}
    ),
}


@pytest.fixture
def gpu(monkeypatch) -> Callable[[Callable[[Stepped], Stepped]], None]:
    """A GPU that takes the CPU's steps, changed by a function."""

    def make(change: Callable[[Stepped], Stepped]) -> None:
        def step(device: str, config: Config, env_spaces) -> Stepped:
            right = step_on("cpu", config, env_spaces)
            return change(right) if device == "cuda" else right

        monkeypatch.setattr(device_check, "step_on", step)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    return make


def test_a_gpu_that_steps_as_the_cpu_is_used(gpu):
    gpu(lambda step: step)
    said: list[str] = []
    for chosen in ("auto", "cuda"):
        config = small("CartPole-v1", device=chosen)
        assert checked(config, CARTPOLE, "cuda", said.append) == "cuda"
    assert said == []


@pytest.mark.parametrize("wrong", WRONG)
def test_a_gpu_that_steps_otherwise_is_not_used(wrong, gpu):
    gpu(WRONG[wrong])
    said: list[str] = []
    assert checked(small("CartPole-v1"), CARTPOLE, "cuda", said.append) == "cpu"
    assert "the GPU is left alone" in said[0]
    assert "its gradient step is" in said[0]
    with pytest.raises(UserError, match=r"device is cuda, but its gradient step is .*--device cpu"):
        checked(small("CartPole-v1", device="cuda"), CARTPOLE, "cuda", said.append)
    assert len(said) == 1


def test_a_gpu_that_fails_is_not_used(gpu):
    def fail(step: Stepped) -> Stepped:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    gpu(fail)
    said: list[str] = []
    assert checked(small("CartPole-v1"), CARTPOLE, "cuda", said.append) == "cpu"
    assert said[0].endswith("a gradient step on it fails: CUDA out of memory.")


def test_the_cpu_is_not_checked(monkeypatch):
    monkeypatch.delattr(device_check, "step_on")
    assert checked(small("CartPole-v1"), CARTPOLE, "cpu", print) == "cpu"
