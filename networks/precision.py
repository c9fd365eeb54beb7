"""The arithmetic of a network's trunk."""

from __future__ import annotations

import torch
from torch.backends import mkldnn

from networks.trunks import trunk_of
from settings.config import Config


def choose_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the learner's trunks compute in bfloat16; emulated, it would be slower."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if not trunk_of(config.network).bfloat16:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bfloat16()


def choose_acting_dtype(config: Config) -> torch.dtype:
    """The dtype in which a sampler computes a trunk of images.

    It is bfloat16 where the sampler's own processor has it, unless --precision float32 was given. So
    a learner that computes in float32, on a processor or a GPU without bfloat16, may have samplers
    that act in bfloat16; their `behaviour_log_prob` is of what they did.
    """
    wanted = config.precision != "float32" and trunk_of(config.network).bfloat16
    return torch.bfloat16 if wanted and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, and torch's oneDNN takes it."""
    exists = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return exists and takes_bfloat16()


def takes_bfloat16() -> bool:
    """Whether torch's oneDNN computes in bfloat16 here, if only by other instructions."""
    return mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
