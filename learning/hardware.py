"""The learner's device and threads, and whether its gradient step is compiled."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import torch

from common import launched
from common.cores import usable_cores
from common.errors import UserError
from learning.trainers import Trainers
from networks.precision import choose_bfloat16
from networks.trunks import trunk_of
from settings.config import Config, ConfigError

# rows of a share: with fewer, weights and gradients take as long from core to core as the other core saves
_ROWS_THAT_PAY = 128
_LEAST_ROWS = 64  # where threads are asked for


def choose_device(config: Config) -> str:
    """The learner's device, cpu or cuda.

    Raises:
        ConfigError: where a GPU is asked for and there is none, or too few for the trainers here.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here: give --device cpu or auto")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    own_gpus = config.trainer_mode == "synchronous" and config.store is None
    if device == "cuda" and own_gpus and launched.here() > torch.cuda.device_count():
        raise ConfigError(
            f"trainers is {launched.here()} on this machine, but it has {torch.cuda.device_count()}"
            f" GPUs, and each trainer needs one: give fewer --trainers, or --device cpu"
        )
    return device


def choose_compile(config: Config, device: str) -> tuple[bool, str]:
    """Whether the gradient step is compiled, and why not, where that may surprise the user.

    Args:
        device: the learner's, cpu or cuda.
    """
    trunk = trunk_of(config.network)
    compiles_after = trunk.compiles_after
    refused = trunk.eager_on_cpu if device == "cpu" else trunk.remembers
    if compiles_after is None or refused:
        wanted = config.compile == "on"
        return False, f"network {config.network} is not compiled: it runs eagerly" if wanted else ""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    steps_per_epoch = config.steps_per_update // config.minibatch_size
    gradient_steps = config.updates * config.times_learned * steps_per_epoch
    pays = gradient_steps >= compiles_after
    if config.compile == "off" or (config.compile != "on" and not pays):
        return False, ""
    if compiler is None:
        return False, "no C++ compiler found: the gradient step is not compiled, training is slower"
    return True, ""


class Threads(NamedTuple):
    """How a trainer uses the cores: one of the two is 1."""

    shares: int  # of a minibatch, each computed by a thread
    in_operators: int  # threads of each operator, of which one waits for the other at its end

    @property
    def most(self) -> int:
        return max(self)


def choose_threads(config: Config, device: str, trainers: int) -> Threads:
    """The threads in which each trainer learns.

    Images are large enough for threads in the operators; whole sequences have no shares, and a loss
    that is no sum over rows is none over shares.

    Args:
        device: the learner's, cpu or cuda.
        trainers: how many have a part of each minibatch.
    """
    wanted = config.torch_threads
    if wanted == 0:
        wanted = max(1, usable_cores() // launched.here())
    trunk = trunk_of(config.network)
    compiled, _ = choose_compile(config, device)
    sums = not trunk.remembers and config.loss_sums_over_rows
    if device != "cpu" or not compiled or not sums or trunk.bfloat16:
        return Threads(1, wanted or 1)
    least = _LEAST_ROWS
    if wanted is None:
        alone = config.policy_lag == 0 and config.trainers == 1
        wanted, least = 2 if alone else 1, _ROWS_THAT_PAY
    rows = config.minibatch_size // trainers
    fit = [n for n in range(2, wanted + 1) if rows % n == 0 and rows // n >= least]
    return Threads(max(fit), 1) if fit else Threads(1, 1)


def refuse_unlike(config: Config, device: str, trainers: Trainers) -> None:
    """Compare what each trainer has chosen: on unlike machines they would not stay alike.

    Raises:
        UserError: in all of them, where one differs.
    """
    mine = {
        "device": device,
        "compile": "on" if choose_compile(config, device)[0] else "off",
        "precision": "bfloat16" if choose_bfloat16(config, torch.device(device)) else "float32",
    }
    everyone = [values for _, values in trainers.everyone({}, mine)]
    for rank, values in enumerate(everyone):
        for name, value in values.items():
            if value != everyone[0][name]:
                raise UserError(
                    f"{name} is {everyone[0][name]} for trainer 0, but {value} for trainer {rank}:"
                    f" give a --{name} that all machines can do, or machines that are alike"
                )
