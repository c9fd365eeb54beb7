"""Policy distributions as pure functions of a network's output.

Shapes: `params` [..., P] is what the policy head puts out, `action` [..., K] holds K independent
sub-actions (Categorical: K = 1, without the axis). Log-probabilities and entropies are those of
the joint action, summed over K: [...].

Sampling is a pure function of noise that is drawn elsewhere, so that the same noise gives the same
action wherever it is computed. For the same reason every operation here gives the same bits for a
row whatever other rows stand beside it (softplus is spelled out: torch's own does not).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from errors import UserError


class Distribution(Protocol):
    """What a policy distribution offers."""

    params: int  # P, the number of parameters for one action
    noise_shape: tuple[int, ...]  # of one action
    action_shape: tuple[int, ...]
    action_dtype: str

    @property
    def noise(self) -> Literal["normal", "uniform"]:
        """The kind of noise that `sample` consumes."""
        ...

    def sample(self, params: Tensor, noise: Tensor) -> Tensor: ...
    def mode(self, params: Tensor) -> Tensor: ...
    def log_prob(self, params: Tensor, action: Tensor) -> Tensor: ...
    def entropy(self, params: Tensor) -> Tensor: ...
    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """KL(params || other), [...]."""
        ...

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """The action that the environment is given, inside its bounds."""
        ...


class Categorical:
    """A discrete action by its logits."""

    noise: Literal["uniform"] = "uniform"
    noise_shape = ()
    action_shape = ()
    action_dtype = "int64"

    def __init__(self, space: spaces.Discrete):
        self.params = int(space.n)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """The inverse of the cumulative distribution at `noise` in [0, 1)."""
        cumulative = torch.softmax(params, -1).cumsum(-1)
        # rounding may leave the last sum below the noise: the last action takes what is left
        return (noise.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return torch.log_softmax(params, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        log_probs = torch.log_softmax(params, -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        log_probs = torch.log_softmax(params, -1)
        return (log_probs.exp() * (log_probs - torch.log_softmax(other, -1))).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action


class _Box:
    """What the continuous distributions share: K sub-actions with bounds."""

    action_dtype = "float32"

    def __init__(self, space: spaces.Box):
        self.action_shape = self.noise_shape = space.shape
        self.params = 2 * space.shape[0]
        self.low, self.high = space.low.astype("float32"), space.high.astype("float32")


class Normal(_Box):
    """Independent normals. `params` = [means, log standard deviations].

    The environment is given the sample clipped to its bounds; the log-probability is that of the
    sample itself, so the clipping is part of the environment.
    """

    noise: Literal["normal"] = "normal"

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        return params.chunk(2, -1)[0]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        deviation = (action - mean) * (-log_std).exp()
        return (-0.5 * deviation * deviation - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        return (params.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        (mean, log_std), (mean2, log_std2) = params.chunk(2, -1), other.chunk(2, -1)
        spread = (2 * (log_std - log_std2)).exp() + ((mean - mean2) * (-log_std2).exp()) ** 2
        return (log_std2 - log_std + 0.5 * spread - 0.5).sum(-1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return np.clip(action, self.low, self.high)


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

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        alpha, beta = self._shapes(params)
        width = self._width.to(params)
        unit = ((action - self._low.to(params)) / width).clamp(self._EDGE, 1 - self._EDGE)
        density = (alpha - 1) * unit.log() + (beta - 1) * torch.log1p(-unit)
        return (density - _log_beta(alpha, beta) - width.log()).sum(-1)

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


def make_distribution(name: str, space: spaces.Space) -> Distribution:
    """The distribution called `name` (`auto`: the usual one) over an action space.

    Raises:
        WrongDistribution: with the ones that fit.
    """
    if isinstance(space, spaces.Discrete):
        if name in ("auto", "categorical"):
            return Categorical(space)
        raise WrongDistribution(f"distribution {name} is for continuous actions, this environment"
                                f" has {space}: give categorical or auto")  # fmt: skip
    assert isinstance(space, spaces.Box)
    if name == "categorical":
        raise WrongDistribution(f"distribution categorical is for discrete actions, this environment"
                                f" has {space}: give normal, beta or auto")  # fmt: skip
    if name == "beta":
        if not space.is_bounded():
            raise WrongDistribution(f"distribution beta needs bounded actions, this environment has"
                                    f" {space}: give normal")  # fmt: skip
        return Beta(space)
    return Normal(space)
