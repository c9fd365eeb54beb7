"""Whether a GPU learns what the CPU does: one gradient step on both, before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithm import PPO
from cluster.sampler import spec_of
from common import launched
from common.errors import UserError
from common.randomness import draw_noise
from envs import Spaces
from learning.batches import Batches, observations
from model import ActorCritic, make_model
from networks.precision import choose_bfloat16
from rollout import Rollout
from settings.config import Config

# How far each tensor of a step may be off. Sums in another order are off by some 1e-6. bfloat16 keeps 8
# bits, and errors add up through the layers: on a CPU up to 13% for nature_cnn, 59% for impala. TF32, in
# which torch lets cuDNN compute convolutions of float32, keeps 3 bits more, so an eighth of that. Two
# steps that have nothing to do with each other are off by 100% and more.
TOLERANCE, BFLOAT16_TOLERANCE = 0.2, 0.9
# A tensor whose gradient is smaller than this share of the whole gradient may be rounding alone.
_SHARE = 1e-4


class Stepped(NamedTuple):
    """A gradient step, on the CPU.

    `norm`: the gradient's, before it is clipped. `gradient`: by the parameters' names, what Adam was
    given, times a constant. `change`: of the parameters.
    """

    norm: float
    gradient: dict[str, Tensor]
    change: dict[str, Tensor]


def step_on(device: str, config: Config, env_spaces: Spaces) -> Stepped:
    """A run's first gradient step on a device, from made-up data. The run itself is not touched."""
    model = make_model(env_spaces, config)
    rollout = _made_up(model, config)
    algorithm = PPO(model.to(device), config)
    batches = Batches(config, rollout, model.device, shares=algorithm.threads.shares)
    generator = np.random.default_rng(0)
    value = batches.values(algorithm.value)[:-1]
    batches.put(
        advantage=generator.standard_normal(value.shape[:2], np.float32),
        value_target=value + generator.standard_normal(value.shape, np.float32),
        old_value=value,
    )
    if model.rnd is not None:
        batches.draw_predicted(generator)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    statistics = algorithm.learn(*batches.epoch(generator)[0])
    sizes = [parameter.numel() for parameter in before.values()]
    gradient = algorithm.descent.adam.moments[0].cpu().split(sizes)
    return Stepped(
        float(statistics[-1]),
        dict(zip(before, gradient, strict=True)),
        {name: (parameters[name] - before[name]).flatten().cpu() for name in before},
    )


def _made_up(model: ActorCritic, config: Config) -> Rollout:
    """Random observations, and what the model does there; enough rows for one minibatch.

    Args:
        model: on the CPU.
    """
    spec = spec_of(model, config)
    envs = -(-config.minibatch_size // config.steps_per_rollout)
    rollout, generator = Rollout.empty(spec, envs), np.random.default_rng(1)
    for array in (rollout.obs, rollout.history):
        if array is None:
            continue
        if array.dtype == np.uint8:
            most = int(model.spaces.observation.high.max())
            array[:] = generator.integers(0, most + 1, array.shape)
        else:
            array[:] = generator.standard_normal(array.shape)
    rollout.valid[:] = True
    seen, distribution = observations(rollout, torch.device("cpu")).numpy(), model.distribution
    for t in range(spec.steps):
        noise = draw_noise(generator, distribution.noise, (envs, *distribution.noise_shape))
        mask = None
        if rollout.action_mask is not None:
            mask = np.ones((envs, distribution.env_mask_size), bool)
        acted = model.act(seen[t], noise, mask, model.initial_state(envs))
        rollout.action[t], rollout.behaviour_log_prob[t] = acted.action, acted.log_prob
        if rollout.action_mask is not None:
            rollout.action_mask[t] = acted.mask
    return rollout


def difference(found: Stepped, expected: Stepped) -> float:
    """How far a step is from the expected one: 0 where it is equal, 1 and more where it is unrelated.

    The largest of all relative errors: of the gradient's norm, and of each parameter tensor's gradient
    and change. In a change, each number counts as much as its gradient is large: Adam's first step is
    as long for a gradient that is nothing but rounding, and may go either way.
    """
    whole = torch.cat(list(expected.gradient.values()))
    least = _SHARE * whole.norm()
    least_change = _SHARE * (whole * torch.cat(list(expected.change.values()))).abs().sum()
    errors = [torch.tensor(abs(found.norm - expected.norm) / expected.norm)]
    for name, gradient in expected.gradient.items():
        off = (found.gradient[name] - gradient).norm()
        errors.append(off / gradient.norm().clamp(min=least))
        change, weight = expected.change[name], gradient.abs()
        off = (weight * (found.change[name] - change).abs()).sum()
        errors.append(off / (weight * change.abs()).sum().clamp(min=least_change))
    return float(torch.stack(errors).max())  # NaN where one is


def what_is_wrong(config: Config, env_spaces: Spaces, device: str) -> str:
    """Compare a device with the CPU; what is to be said of it, or "" where both agree.

    Of several GPUs this process takes its trainer's; trainers that need none of their own share.
    """
    plain = dataclasses.replace(config, compile="off", precision="float32")
    try:
        if device == "cuda":
            torch.cuda.set_device(launched.local_rank() % torch.cuda.device_count())
        found = step_on(device, config, env_spaces)
    except RuntimeError as error:  # torch's for whatever a GPU, its driver or a compiler refuses
        return f"a gradient step on it fails: {str(error).strip().partition(chr(10))[0]}"
    off = difference(found, step_on("cpu", plain, env_spaces))
    bfloat16 = choose_bfloat16(config, torch.device(device))
    tolerance = BFLOAT16_TOLERANCE if bfloat16 else TOLERANCE
    if off <= tolerance:
        return ""
    return f"its gradient step is {off:.0%} off the CPU's, where {tolerance:.0%} could be rounding"


def checked(config: Config, env_spaces: Spaces, device: str, say: Callable[[str], None]) -> str:
    """The device to learn on: the one chosen, or the CPU where that one steps otherwise.

    Args:
        say: is told why the chosen device is not used.

    Raises:
        UserError: instead, where the settings name the device.
    """
    if device == "cpu":
        return device
    wrong = what_is_wrong(config, env_spaces, device)
    if not wrong:
        return device
    if config.device == device:
        raise UserError(
            f"device is {device}, but {wrong}: give --device cpu, or try --compile off or"
            f" --precision float32"
        )
    say(f"the GPU is left alone, and the CPU learns: {wrong}")
    return "cpu"
