"""Distributions of continuous actions: K sub-actions, each with its bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from distributions.base import Distribution
from distributions.compiled import sample_normal


class _Box(Distribution):
    """What the continuous distributions share: the space's bounds, two parameters a sub-action."""

    action_dtype = "float32"

    def __init__(self, space: spaces.Box):
        self.action_shape = self.noise_shape = space.shape
        self.sub_actions = space.shape[0]
        self.outputs = 2 * self.sub_actions
        self.low = _float32(space.low, np.inf)
        self.high = np.maximum(_float32(space.high, -np.inf), self.low)  # one value stays one
        self._bounds = torch.from_numpy(self.low), torch.from_numpy(self.high)

    def to_env_tensor(self, action: Tensor) -> Tensor:
        return action.clamp(*self._bounds)


def _float32(bound: np.ndarray, inside: float) -> np.ndarray:
    """A bound in float32; where it has to be rounded, not beyond itself."""
    with np.errstate(over="ignore"):
        rounded = bound.astype(np.float32)
    beyond = rounded < bound if inside > 0 else rounded > bound
    return np.where(beyond, np.nextafter(rounded, np.float32(inside)), rounded)


class Normal(_Box):
    """Independent normals. `params` = [means, log standard deviations].

    The environment is given the sample clipped to its bounds; the log-probability is that of the
    sample itself, so the clipping is part of the environment.

    Args:
        space: the actions.
        scaled: the policy's [-1, 1] means the whole width between the bounds.
        initial_log_std: log standard deviation to begin with.
        state_dependent_std: the network puts out the standard deviations; otherwise they are
            parameters of their own.
    """

    noise = "normal"

    def __init__(
        self,
        space: spaces.Box,
        scaled: bool = False,
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
    ):
        super().__init__(space)
        self.scaled, self.initial_log_std = scaled, initial_log_std
        if not state_dependent_std:
            self.outputs = self.sub_actions
            self.own = torch.full((self.sub_actions,), initial_log_std)

    def shaped(self, output: Tensor, own: Tensor | None) -> Tensor:
        if own is not None:
            return torch.cat([output, own.expand_as(output)], -1)
        mean, log_std = output.chunk(2, -1)
        return torch.cat([mean, (log_std + self.initial_log_std).clamp(-5.0, 2.0)], -1)

    def sample_compiled(
        self, output: np.ndarray, own: Tensor | None, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        return None if own is None else sample_normal(output, own.detach().numpy(), noise)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        return params.chunk(2, -1)[0]

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        deviation = (action - mean) * (-log_std).exp()
        return -0.5 * deviation * deviation - log_std - 0.5 * math.log(2 * math.pi)

    def entropy(self, params: Tensor) -> Tensor:
        return (params.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        if self.scaled:
            action = self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)
        return np.clip(action, self.low, self.high)  # rounding may go beyond a bound

    def to_env_tensor(self, action: Tensor) -> Tensor:
        low, high = self._bounds
        if self.scaled:
            action = low + (action.clamp(-1, 1) + 1) / 2 * (high - low)
        return super().to_env_tensor(action)


class TanhNormal(Normal):
    """Normals squashed into the bounds: a = low + (tanh(u) + 1) / 2 * width, u normal.

    `action` is u, which loses nothing near the bounds. Densities are those of a, the Jacobian
    included (Haarnoja et al. 2018, arXiv 1801.01290, appendix C):

        log p(a) = log N(u) - log(width / 2) - log(1 - tanh(u)^2)
    """

    # Gauss-Hermite quadrature: the entropy contains an expectation without a closed form. It is exact to
    # 1e-4 for standard deviations of u up to 1.6, to 0.003 for 2.7 and to 0.05 for 7.4, the largest
    _NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)

    def __init__(
        self, space: spaces.Box, initial_log_std: float = 0.0, state_dependent_std: bool = False
    ):
        super().__init__(space, False, initial_log_std, state_dependent_std)
        self._log_half_width = torch.from_numpy(np.log((self.high - self.low) / 2))
        self._nodes = torch.tensor(self._NODES, dtype=torch.float32)
        self._weights = torch.tensor(
            self._WEIGHTS / math.sqrt(2 * math.pi), dtype=torch.float32
        ).unsqueeze(-1)

    def _log_jacobian(self, u: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), finite also where tanh(u)^2 rounds to 1
        softplus = (-2 * u).relu() + torch.log1p((-2 * u.abs()).exp())
        return self._log_half_width.to(u) + 2 * (math.log(2) - u - softplus)

    def sample_compiled(
        self, output: np.ndarray, own: Tensor | None, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        return None  # the compiled function knows the density of the normal only

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return super().sub_log_prob(params, action) - self._log_jacobian(action)

    def entropy(self, params: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        u = mean.unsqueeze(-2) + log_std.exp().unsqueeze(-2) * self._nodes.to(mean).unsqueeze(-1)
        squashing = (self._log_jacobian(u) * self._weights.to(mean)).sum(-2)
        return super().entropy(params) + squashing.sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        unit = (np.tanh(action) + 1) / 2
        return np.clip(self.low + (self.high - self.low) * unit, self.low, self.high)

    def to_env_tensor(self, action: Tensor) -> Tensor:
        low, high = self._bounds
        return super().to_env_tensor(low + (high - low) * (action.tanh() + 1) / 2)


class Beta(_Box):
    """Independent betas on the action bounds (Chou et al. 2017), both shape parameters above 1.

    `action` is the action on the bounds' scale; its density includes the scale's Jacobian.
    """

    noise = "uniform"
    _EDGE = 1e-6  # actions stay this far inside (0, 1), where the log density is finite

    def __init__(self, space: spaces.Box):
        super().__init__(space)
        self._low, self._width = torch.from_numpy(self.low), torch.from_numpy(self.high - self.low)

    def _shapes(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shape = 1 + params.relu() + torch.log1p((-params.abs()).exp())  # 1 + softplus
        alpha, beta = shape.chunk(2, -1)
        return alpha, beta

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """The inverse of the cumulative distribution at `noise` in [0, 1)."""
        from scipy.special import betaincinv

        alpha, beta = self._shapes(params)
        unit = betaincinv(alpha.cpu().numpy(), beta.cpu().numpy(), noise.cpu().numpy()).astype(
            "float32"
        )
        action = torch.from_numpy(self.low + (self.high - self.low) * self._inside(unit))
        return action.to(params.device)

    def _inside(self, unit: np.ndarray) -> np.ndarray:
        return np.clip(unit, self._EDGE, 1 - self._EDGE)

    def mode(self, params: Tensor) -> Tensor:
        """The mean: defined, unlike the mode, also where both shape parameters are near 1."""
        alpha, beta = self._shapes(params)
        return self._low.to(params) + self._width.to(params) * alpha / (alpha + beta)

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        alpha, beta = self._shapes(params)
        width = self._width.to(params)
        unit = ((action - self._low.to(params)) / width).clamp(self._EDGE, 1 - self._EDGE)
        density = (alpha - 1) * unit.log() + (beta - 1) * torch.log1p(-unit)
        return density - _log_beta(alpha, beta) - width.log()

    def entropy(self, params: Tensor) -> Tensor:
        alpha, beta = self._shapes(params)
        both = alpha + beta
        unit = (
            _log_beta(alpha, beta)
            - (alpha - 1) * torch.digamma(alpha)
            - (beta - 1) * torch.digamma(beta)
            + (both - 2) * torch.digamma(both)
        )
        return (unit + self._width.to(params).log()).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return np.clip(action, self.low, self.high)  # low + width * unit may round beyond a bound


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
