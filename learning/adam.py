"""Adam as arithmetic on tensors, so that it is compiled as one with the clipping of the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from networks.layers import computed_once

_BETAS = 0.9, 0.999


def among(some: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Which of all n parameters, flat in their order, belong to some of the tensors: [n] bool."""
    places = {id(p) for p in some}
    return torch.cat(
        [torch.full_like(p, id(p) in places, dtype=torch.bool).flatten() for p in parameters]
    )


def clip(gradient: Tensor, norm: Tensor, bound: float, apart: Tensor | None) -> Tensor:
    """A gradient [n] of this norm, shortened where the norm is above the bound.

    Args:
        apart: parameters [n] bool; their gradient and that of the others are bounded each alone.
    """
    if apart is None:
        _, factor = computed_once(norm, (bound / (norm + 1e-6)).clamp(max=1.0))
        return gradient * factor
    parts = torch.where(apart, gradient, 0.0), torch.where(apart, 0.0, gradient)
    one, other = (clip(part, part.norm(), bound, None) for part in parts)
    return one + other


class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980).

    Args:
        parameters: that it changes, in place, on one device.
        learning_rate: of the next steps; its value is set in place.
        eps: what is added to the root of the mean square.
        factors: of the learning rate, for each of the n parameters [n]. None: 1.
        some_rest: whether there are steps in which some of the parameters rest.

    Attributes:
        moments: running means of the gradient and of its square [2, n], for all n parameters, flat
            in their order.
        decay: both betas to the power of the steps so far [2], or of each parameter's own [2, n] where
            `some_rest`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: Tensor,
        eps: float,
        factors: Tensor | None = None,
        some_rest: bool = False,
    ):
        self._parameters, self._learning_rate, self._eps = parameters, learning_rate, eps
        self._sizes = [p.numel() for p in parameters]
        device = learning_rate.device
        self.moments = torch.zeros(2, sum(self._sizes), device=device)
        # one by one: the compiler would copy all of a tensor of which a step changes two rows
        self._mean, self._square = self.moments
        self.decay = torch.ones_like(self.moments) if some_rest else torch.ones(2, device=device)
        self._betas = torch.tensor(_BETAS, device=device)
        self._factors = factors

    def step(self, gradient: Tensor, learns: Tensor | None = None) -> None:
        """Algorithm 1 of the paper, for one gradient [n]. It is not to be differentiated.

        Args:
            learns: which parameters make this step [n] bool, where `some_rest`; the others stay as they
                are, with their moments. None: all.
        """
        (beta1, beta2), mean, square = _BETAS, self._mean, self._square
        if learns is None:
            self.decay.mul_(self._betas)
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(gradient * gradient, 1 - beta2)
        else:
            self.decay.mul_(torch.where(learns, self._betas.unsqueeze(-1), 1.0))
            mean.copy_(torch.where(learns, mean.lerp(gradient, 1 - beta1), mean))
            square.copy_(torch.where(learns, square.lerp(gradient * gradient, 1 - beta2), square))
        of_square, rate = 1 / (1 - self.decay[1]), self._learning_rate / (1 - self.decay[0])
        if learns is None:  # one number each
            of_square, rate = computed_once(of_square, rate)
        denominator = (square * of_square).sqrt() + self._eps
        change = mean / denominator * rate
        if self._factors is not None:
            change = change * self._factors
        if learns is not None:
            change = torch.where(learns, change, 0.0)
        for parameter, part in zip(self._parameters, change.split(self._sizes), strict=True):
            parameter.sub_(part.view_as(parameter))
