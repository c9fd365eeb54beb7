from __future__ import annotations

import torch

from learning.surrogate import MOST_LOG_RATIO, bounded


def test_a_log_ratio_is_bounded_above_alone():
    """Actions that have become unlikely keep the KL's gradient, which is to bring them back."""
    given = torch.tensor([-300.0, -25.0, 0.0, 19.0, 25.0, 300.0], requires_grad=True)
    log_ratio = bounded(given)
    divergence = log_ratio.exp() - 1 - log_ratio
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert log_ratio.tolist() == [-300.0, -25.0, 0.0, 19.0, MOST_LOG_RATIO, MOST_LOG_RATIO]
    assert given.grad is not None
    torch.testing.assert_close(given.grad[:2], torch.tensor([-1.0, -1.0]))
    assert given.grad.isfinite().all()
