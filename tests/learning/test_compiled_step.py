"""A compiled gradient step changes nothing for other code in the process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time

import pytest
import torch
from torch import Tensor

from envs import Spaces
from learning import kept_step
from learning.compiled_step import Compiled, _decomposed
from networks.tanh import rational_tanh


class Learner:
    """One weight, moved against the gradient of tanh(weight * x) summed."""

    def __init__(self) -> None:
        self.weight = torch.full((1,), 0.5, requires_grad=True)

    def compiled(self, settings: dict[str, str] | None = None, here: bool = True) -> Compiled:
        return Compiled(self.step, False, {"weight": self.weight}, settings, lambda: here)

    def step(self, batch: tuple[Tensor, ...]) -> Tensor:
        total = (self.weight * batch[0]).tanh().sum()
        (gradient,) = torch.autograd.grad(total, [self.weight])
        with torch.no_grad():
            self.weight.sub_(1e-4 * gradient)  # the gradient is a sum of 1,000 terms
        return total.detach()


def test_an_operator_is_decomposed_though_torch_has_compiled_before():
    from torch._inductor.decomposition import select_decomp_table

    tanh = torch.ops.aten.tanh.default
    before = dict(select_decomp_table())  # torch keeps a copy from here on
    with _decomposed(tanh, rational_tanh):
        assert select_decomp_table() == before | {tanh: rational_tanh}
    assert select_decomp_table() == before


@pytest.mark.slow
def test_torchs_own_switches_are_as_before_and_a_users_tanh_is_torchs():
    from torch._inductor.decomposition import decompositions, select_decomp_table

    tables = [dict(table) for table in (decompositions, select_decomp_table())]
    traces = torch._dynamo.config.trace_autograd_ops
    learner, eager = Learner(), Learner()
    step = learner.compiled()
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
    step = Fails().compiled()
    with pytest.raises(Exception, match="within the step"):
        step((torch.ones(3),))
    assert torch._dynamo.config.trace_autograd_ops == traces


@pytest.mark.slow
def test_a_later_run_takes_the_kept_step_and_computes_the_same_bits(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters

    x = torch.linspace(-1, 3, 1000)

    def after_steps() -> tuple[Learner, int]:
        learner, before = Learner(), counters["stats"]["unique_graphs"]
        step = learner.compiled({"learning_rate": "1e-4"})
        for _ in range(3):
            step((x,))
        return learner, counters["stats"]["unique_graphs"] - before

    monkeypatch.setattr(kept_step, "place", lambda: tmp_path / "kept")
    beside, eager = Learner(), Learner()
    awaiting = beside.compiled({"learning_rate": "1e-4"}, here=False)
    torch.testing.assert_close(awaiting((x,)), eager.step((x,)), rtol=0, atol=0)
    assert not awaiting.take_kept()
    first, compiled = after_steps()
    assert compiled == 1
    (library,) = (tmp_path / "kept").glob("*.so")
    record = library.with_suffix(".json")
    for age in range(200, 0, -1):
        for of_this in (record, library):
            other = shutil.copy(of_this, of_this.with_stem(f"{age} days old"))
            os.utime(other, (0, time.time() - 86400 * age))
    os.utime(record, (0, 0))
    again, compiled = after_steps()
    assert compiled == 0
    assert torch.equal(again.weight, first.weight)
    assert record.stat().st_mtime > time.time() - 86400  # it has been used
    assert awaiting.take_kept()
    total = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(awaiting((x,)), eager.step((x,)))
    torch.testing.assert_close(beside.weight, eager.weight)
    assert counters["stats"]["unique_graphs"] == total

    damaged = library.read_bytes()[:-1]
    library.unlink()  # this process has it loaded
    library.write_bytes(damaged)
    mended, compiled = after_steps()
    assert compiled == 1
    assert torch.equal(mended.weight, first.weight)
    newest = {record.stem, *(f"{age} days old" for age in range(1, 192))}
    for suffix in (".json", ".so"):
        assert {path.stem for path in record.parent.glob(f"*{suffix}")} == newest

    (tmp_path / "kept").chmod(0o777)  # somebody else may have put it there
    alone, compiled = after_steps()
    assert compiled == 1
    assert torch.equal(alone.weight, first.weight)


@pytest.mark.parametrize(
    "other", [{"settings": {"adam_eps": 1e-5}}, {"tensors": {}}, {"function": "other"}]
)
def test_what_is_compiled_differently_is_kept_apart(other):
    step = {"function": "step", "settings": {}, "tensors": {"weight": torch.zeros(1)}}
    assert kept_step.name_of(**step) == kept_step.name_of(**step)
    assert kept_step.name_of(**step) != kept_step.name_of(**step | other)


@pytest.mark.slow
def test_torch_caches_the_whole_of_the_gradient_steps_compilation():
    """Otherwise every run starts some seconds later, for as long as nobody looks."""
    from torch._dynamo.utils import counters

    from algorithm import PPO
    from model import make_model
    from tests.test_algorithm import BOX, OBS, make_ppo, random_batch

    class Own(PPO):
        """Nobody but torch keeps the steps of a class of a user's own."""

    config = dataclasses.replace(make_ppo().config, compile="on")
    learner = Own(make_model(Spaces(OBS, BOX, 0), config), config)
    counters.clear()
    learner.learn(random_batch(learner))
    caches = counters["aot_autograd"] | counters["inductor"]
    assert (
        caches["autograd_cache_hit"] + caches["autograd_cache_miss"] == 2
    )  # the step's two halves
    assert not [name for name in caches if "bypass" in name]
