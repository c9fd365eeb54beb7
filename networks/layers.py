"""The layers of all networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from common.errors import UserError

# BLAS picks a kernel by the number of rows, and kernels differ in their order of summation. Acting
# multiplies blocks of this many rows, so that an action has the same bits however the environments
# are spread over samplers; `PackedNetwork` has blocks of its own
BLOCK_ROWS = 16

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU,
}  # fmt: skip


class WrongNetwork(UserError):
    """A network that does not fit the observations, or that does not exist."""


def orthogonal(layer: Any, gain: float) -> Any:
    """Initialise a layer's weights orthogonally with this gain (Saxe et al. 2014), biases at 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def computed_once(*tensors: Tensor) -> Sequence[Tensor]:
    """The same tensors, of one shape, for use in a loop over more elements than they have.

    The compiler would compute them within that loop, once for every vector of it, roots and divisions
    included. This makes it compute them into memory before the loop.
    """
    return torch.stack(tensors).unbind() if torch.compiler.is_compiling() else tensors


class Linear(nn.Linear):
    """A linear layer [B, inputs] -> [B, outputs] that acts on each row alone, bit for bit.

    It does so in inference mode, in which the samplers act; the learner is spared the cost.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.rowwise(input, self.weight, self.bias)

    @staticmethod
    def rowwise(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # the compiler cannot trace `is_inference_mode_enabled`, so it must be asked second
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return linear(input, weight, bias)
        rows, missing = len(input), -input.shape[1] % 16
        if missing and len(weight) < 16:
            # MKL multiplies small matrices of an odd width by kernels that depend on a row's place
            input, weight = pad(input, (0, missing)), pad(weight, (0, missing))
        padded = pad(input, (0, 0, 0, -rows % BLOCK_ROWS))
        blocks = [linear(block, weight, bias) for block in padded.split(BLOCK_ROWS)]
        return torch.cat(blocks)[:rows]


class NoisyLinear(Linear):
    """A linear layer whose weights are perturbed: w + sigma * noise (Fortunato et al. 2018).

    The noise is a buffer, drawn anew after each update (`resample`), so that it travels with the
    weights: learner and samplers perturb alike, and the ratio of an unchanged policy is 1.
    """

    SIGMA = 0.017  # at the start, for independent noise
    weight_noise: Tensor
    bias_noise: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), self.SIGMA))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), self.SIGMA))
        self.register_buffer("weight_noise", torch.zeros(outputs, inputs))
        self.register_buffer("bias_noise", torch.zeros(outputs))
        self._quiet = False

    @staticmethod
    @contextmanager
    def quiet(layers: Iterable[NoisyLinear]) -> Iterator[None]:
        """Within it the layers compute as if their noise were 0, as greedy actions want it."""
        layers = list(layers)
        for layer in layers:
            layer._quiet = True
        try:
            yield
        finally:
            for layer in layers:
                layer._quiet = False

    def resample(self, generator: np.random.Generator) -> None:
        for noise in (self.weight_noise, self.bias_noise):
            drawn = generator.standard_normal(tuple(noise.shape), np.float32)
            noise.copy_(torch.from_numpy(drawn))

    def forward(self, input: Tensor) -> Tensor:
        if self._quiet:
            return self.rowwise(input, self.weight, self.bias)
        weight = self.weight + self.weight_sigma * self.weight_noise
        return self.rowwise(input, weight, self.bias + self.bias_sigma * self.bias_noise)


def mlp(
    inputs: int, hidden_sizes: tuple[int, ...], activation: str, noisy: bool = False
) -> nn.Sequential:
    """A multi-layer perceptron [B, inputs] -> [B, hidden_sizes[-1]]; `noisy`: in its last layer."""
    layers: list[nn.Module] = []
    for number, width in enumerate(hidden_sizes, 1):
        layer = NoisyLinear if noisy and number == len(hidden_sizes) else Linear
        layers += [orthogonal(layer(inputs, width), math.sqrt(2)), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> Any:
    return orthogonal(nn.Conv2d(inputs, outputs, size, stride, padding), math.sqrt(2))


# Each trainer's number of rows, with their mean and variance, given this one's
Gathered = Callable[[int, Tensor, Tensor], list[tuple[int, Tensor, Tensor]]]


def alone(count: int, mean: Tensor, var: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """`Gathered` where there is one trainer."""
    return [(count, mean, var)]


class RunningMoments(nn.Module):
    """Running mean and variance of rows [B, ...], as buffers: they travel with the weights.

    float64: counts pass 2^24 in a long run.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, rows: Tensor, gather: Gathered = alone) -> None:
        """Merge a batch [B, ...]: with `gather`, those of all trainers, one after another."""
        count, mean, var = 0, self.mean, self.var
        if len(rows):
            rows = rows.double()
            count, mean, var = len(rows), rows.mean(0), rows.var(0, correction=0)
        for part in gather(count, mean, var):
            if part[0]:
                self._merge(*part)

    def _merge(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Add the moments of a batch of `count` rows (Chan et al. 1979)."""
        total = self.count + count
        delta = mean - self.mean
        # before the first batch the variance is a placeholder of 1 with no weight (count 0)
        spread = self.var * self.count + var * count
        self.var.copy_((spread + delta**2 * self.count * count / total) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)

    def forward(self, rows: Tensor, clip: float) -> Tensor:
        """Rows in standard deviations from the mean, float32, within +-clip."""
        mean, scale = computed_once(self.mean.float(), (self.var + 1e-8).rsqrt().float())
        return ((rows - mean) * scale).clamp(-clip, clip)


class ValueHead(Linear):
    """State values [B, outputs] of features [B, inputs].

    With `normalizes`, what is learned is normalised by running moments of the value targets, and
    what is put out is not: PopArt (van Hasselt et al. 2016, arXiv 1602.07714).
    """

    def __init__(self, inputs: int, outputs: int, normalizes: bool):
        super().__init__(inputs, outputs)
        orthogonal(self, 1.0)
        self.moments = RunningMoments((outputs,)) if normalizes else None

    def forward(self, input: Tensor) -> Tensor:
        value = super().forward(input)
        if self.moments is None:
            return value
        return value * self.scale() + self.moments.mean.float()

    def scale(self) -> Tensor | float:
        """Standard deviation of the value targets, in which values are learned, or 1."""
        return 1.0 if self.moments is None else self.moments.var.sqrt().float()

    @torch.no_grad()
    def update_normalizer(self, target: Tensor, gather: Gathered = alone) -> None:
        """Merge value targets [B, outputs], and keep every output as it was (PopArt, eq. 9)."""
        moments = self.moments
        assert moments is not None
        mean, scale = moments.mean.clone(), moments.var.sqrt()
        moments.update(target, gather)
        moments.var.clamp_(min=1e-4)
        new = moments.var.sqrt()
        self.weight.mul_((scale / new).float().unsqueeze(-1))
        self.bias.copy_(((scale * self.bias.double() + mean - moments.mean) / new).float())
