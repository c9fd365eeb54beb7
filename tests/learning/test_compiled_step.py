"""A compiled gradient step changes nothing for other code in the process."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from envs import Spaces
from learning.compiled_step import Compiled
from networks.tanh import rational_tanh


class Learner:
    """One weight, moved against the gradient of tanh(weight * x) summed."""

    def __init__(self) -> None:
        self.weight = torch.full((1,), 0.5, requires_grad=True)
        torch._dynamo.mark_static_address(self.weight)

    def step(self, batch: tuple[Tensor, ...]) -> Tensor:
        total = (self.weight * batch[0]).tanh().sum()
        (gradient,) = torch.autograd.grad(total, [self.weight])
        with torch.no_grad():
            self.weight.sub_(1e-4 * gradient)  # the gradient is a sum of 1,000 terms
        return total.detach()


@pytest.mark.slow
def test_torchs_own_switches_are_as_before_and_a_users_tanh_is_torchs():
    from torch._inductor.decomposition import decompositions, select_decomp_table

    tables = [dict(table) for table in (decompositions, select_decomp_table())]
    traces = torch._dynamo.config.trace_autograd_ops
    learner, eager = Learner(), Learner()
    step = Compiled(learner.step, graphs=False)
    x = torch.linspace(-1, 3, 1000)  # not even about 0: sums of tanh would cancel
    for _ in range(3):
        torch.testing.assert_close(step((x,)), eager.step((x,)))
    torch.testing.assert_close(learner.weight, eager.weight)

    assert [decompositions, select_decomp_table()] == tables
    assert torch._dynamo.config.trace_autograd_ops == traces
    # torch's own cache does not tell vectors of another width apart: see `Compiled`
    with torch.compiler.config.patch(cache_key_tag=torch.backends.cpu.get_cpu_capability()):
        of_the_user = torch.compile(lambda x: x.tanh())(x)
    # either is within one unit in the last place (1.2e-7) of tanh
    torch.testing.assert_close(of_the_user, x.tanh(), rtol=2.4e-7, atol=0)
    assert not torch.equal(of_the_user, rational_tanh(x))


def test_a_compile_that_fails_leaves_no_switch_behind():
    class Fails(Learner):
        def step(self, batch: tuple[Tensor, ...]) -> Tensor:
            raise RuntimeError("within the step")

    traces = torch._dynamo.config.trace_autograd_ops
    step = Compiled(Fails().step, graphs=False)
    with pytest.raises(Exception, match="within the step"):
        step((torch.ones(3),))
    assert torch._dynamo.config.trace_autograd_ops == traces


@pytest.mark.slow
def test_torch_caches_the_whole_of_the_gradient_steps_compilation():
    """Otherwise every run starts some seconds later, for as long as nobody looks."""
    from torch._dynamo.utils import counters

    from algorithm import PPO
    from model import make_model
    from tests.test_algorithm import BOX, OBS, make_ppo, random_batch

    config = dataclasses.replace(make_ppo().config, compile="on")
    learner = PPO(make_model(Spaces(OBS, BOX, 0), config), config)
    counters.clear()
    learner.learn(random_batch(learner))
    caches = counters["aot_autograd"] | counters["inductor"]
    assert caches["autograd_cache_hit"] + caches["autograd_cache_miss"] == 1
    assert not [name for name in caches if "bypass" in name]
