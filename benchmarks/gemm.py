"""How fast this machine multiplies matrices, and how much of that a gradient step asks for."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import build_model
from settings.config import Config

_SIDE = 2048  # of the matrices


def gemm_peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of multiplying large square matrices, at best."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * _SIDE**3 / min(times)


def gradient_flop(config: Config) -> float:
    """FLOP of a gradient step, for each row of the minibatch: the networks forward and backward."""
    model, rows = build_model(config), 16
    shape = model.spaces.observation.shape
    obs = torch.zeros(rows, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    masks = model.spaces.masks
    mask = torch.ones(rows, model.distribution.mask_size, dtype=torch.bool) if masks else None
    with FlopCounterMode(display=False) as counter:
        params, value = model(obs, mask)
        (value.sum() + model.distribution.entropy(params).sum()).backward()
    return counter.get_total_flops() / rows
