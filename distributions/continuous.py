"""Policy distributions as pure functions of a network's output; those of continuous actions.

Shapes: `params` [..., P] is what the policy head puts out, `action` [..., K] holds K independent
sub-actions (Categorical: K = 1, without the axis). `sub_log_prob` is [..., K]; log-probabilities
and entropies are those of the joint action, summed over K: [...].

Sampling is a pure function of noise that is drawn elsewhere, so that the same noise gives the same
action wherever it is computed. For the same reason every operation here gives the same bits for a
row whatever other rows stand beside it (softplus is spelled out: torch's own does not).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from common.errors import UserError
from distributions.discrete import Categorical, GridMultiDiscrete, MultiDiscrete, UnitSelection
from envs.microrts.game import COMPONENTS


class Distribution(Protocol):
    """What a policy distribution offers."""

    params: int  # P, the number of parameters for one action
    sub_actions: int  # K
    mask_size: int  # A: entries of the mask that is stored with an action, where there is one
    noise_shape: tuple[int, ...]  # of one action
    action_shape: tuple[int, ...]
    action_dtype: str

    @property
    def noise(self) -> Literal["normal", "uniform"]:
        """The kind of noise that `sample` consumes."""
        ...

    def sample(self, params: Any, noise: Tensor) -> Tensor: ...
    def mode(self, params: Any) -> Tensor: ...
    def sub_log_prob(self, params: Any, action: Tensor) -> Tensor: ...
    def log_prob(self, params: Any, action: Tensor) -> Tensor: ...
    def entropy(self, params: Any) -> Tensor: ...
    def kl(self, params: Any, other: Any) -> Tensor:
        """KL(params || other), [...]."""
        ...

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """The action that the environment is given, inside its bounds."""
        ...


class _Box:
    """What the continuous distributions share: K sub-actions with bounds."""

    action_dtype = "float32"
    mask_size = 0

    def __init__(self, space: spaces.Box):
        self.action_shape = self.noise_shape = space.shape
        self.sub_actions = space.shape[0]
        self.params = 2 * self.sub_actions
        self.low, self.high = space.low.astype("float32"), space.high.astype("float32")

    def sub_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return self.sub_log_prob(params, action).sum(-1)


class Normal(_Box):
    """Independent normals. `params` = [means, log standard deviations].

    The environment is given the sample clipped to its bounds; the log-probability is that of the
    sample itself, so the clipping is part of the environment.

    Args:
        space: the actions.
        scaled: the policy's [-1, 1] means the whole width between the bounds.
    """

    noise: Literal["normal"] = "normal"

    def __init__(self, space: spaces.Box, scaled: bool = False):
        super().__init__(space)
        self.scaled = scaled

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

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        (mean, log_std), (mean2, log_std2) = params.chunk(2, -1), other.chunk(2, -1)
        spread = (2 * (log_std - log_std2)).exp() + ((mean - mean2) * (-log_std2).exp()) ** 2
        return (log_std2 - log_std + 0.5 * spread - 0.5).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        if self.scaled:
            return self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)
        return np.clip(action, self.low, self.high)


class TanhNormal(Normal):
    """Normals squashed into the bounds: a = low + (tanh(u) + 1) / 2 * width, u normal.

    `action` is u, which loses nothing near the bounds. Densities are those of a, the Jacobian
    included (Haarnoja et al. 2018, arXiv 1801.01290, appendix C):

        log p(a) = log N(u) - log(width / 2) - log(1 - tanh(u)^2)
    """

    # Gauss-Hermite quadrature of the one expectation that the entropy has no closed form for
    _NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)

    def __init__(self, space: spaces.Box):
        super().__init__(space)
        self._log_half_width = torch.from_numpy(np.log((self.high - self.low) / 2))
        self._nodes = torch.tensor(self._NODES, dtype=torch.float32)
        self._weights = torch.tensor(
            self._WEIGHTS / math.sqrt(2 * math.pi), dtype=torch.float32
        ).unsqueeze(-1)

    def _log_jacobian(self, u: Tensor) -> Tensor:
        # log(1 - tanh(u)^2), where that rounds to 0 too: 2 (log 2 - u - softplus(-2 u))
        softplus = (-2 * u).relu() + torch.log1p((-2 * u.abs()).exp())
        return self._log_half_width.to(u) + 2 * (math.log(2) - u - softplus)

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


class Beta(_Box):
    """Independent betas on the action bounds (Chou et al. 2017), both shape parameters above 1.

    `action` is the action on the bounds' scale; its density includes the scale's Jacobian.
    """

    noise: Literal["uniform"] = "uniform"
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
        unit = betaincinv(alpha.numpy(), beta.numpy(), noise.numpy()).astype("float32")
        return torch.from_numpy(self.low + (self.high - self.low) * self._inside(unit))

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

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        (a, b), (a2, b2) = self._shapes(params), self._shapes(other)
        return (
            _log_beta(a2, b2)
            - _log_beta(a, b)
            + (a - a2) * torch.digamma(a)
            + (b - b2) * torch.digamma(b)
            + (a2 - a + b2 - b) * torch.digamma(a + b)
        ).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return np.clip(action, self.low, self.high)  # rounding of low + width * unit


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)


class WrongDistribution(UserError):
    """A distribution that does not fit the action space."""


def make_distribution(name: str, space: spaces.Space, scaled: bool = False) -> Distribution:
    """The distribution called `name` (`auto`: the usual one) over an action space.

    Args:
        scaled: see `Normal`.

    Raises:
        WrongDistribution: with the ones that fit.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        if name not in ("auto", "categorical"):
            raise WrongDistribution(
                f"distribution {name} is for continuous actions, this environment has {space}:"
                f" give categorical or auto"
            )
        if isinstance(space, spaces.Discrete):
            return Categorical(space)
        return _over_units(tuple(int(n) for n in space.nvec))
    assert isinstance(space, spaces.Box)
    if name == "categorical":
        raise WrongDistribution(f"distribution categorical is for discrete actions, this environment"
                                f" has {space}: give normal, tanh_normal, beta or auto")  # fmt: skip
    if (name in ("beta", "tanh_normal") or scaled) and not space.is_bounded():
        asked = f"distribution {name}" if name in ("beta", "tanh_normal") else "scale_action"
        raise WrongDistribution(
            f"{asked} needs bounded actions, this environment has {space}: give normal"
            f"{' without scale_action' if scaled else ''}"
        )
    if name == "beta":
        return Beta(space)
    return TanhNormal(space) if name == "tanh_normal" else Normal(space, scaled)


def _over_units(sizes: tuple[int, ...]) -> MultiDiscrete:
    """microRTS's spaces are known by their shape: a grid of cells, or a cell and its action."""
    width = len(COMPONENTS)
    if len(sizes) == width + 1 and sizes[1:] == COMPONENTS:
        return UnitSelection(sizes[0], COMPONENTS)
    cells, rest = divmod(len(sizes), width)
    if not rest and cells and sizes == COMPONENTS * cells:
        return GridMultiDiscrete(COMPONENTS, cells)
    return MultiDiscrete(sizes)
