"""Networks over time against slow, obvious ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from envs import Spaces
from model import make_model
from networks.recurrence import unroll
from networks.sequence import Lstm, Transformer
from networks.trunks import Past
from settings.config import Config
from tests.conftest import run_command
from tests.test_agent import collect, make, small
from training.summary import weights_digest


def of_one(lstm: Lstm, obs: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """One environment's features [T, width] and state [2 * width], by torch's own cell."""
    cell = nn.LSTMCell(lstm.width, lstm.width)
    names = ["weight_ih", "bias_ih", "weight_hh", "bias_hh"]
    layers = (lstm.of_input.weight, lstm.of_input.bias, lstm.of_hidden.weight, lstm.of_hidden.bias)
    own = dict(zip(names, layers, strict=True))
    hidden, content = state.chunk(2)
    features = []
    for row, begin in zip(lstm.encoder(obs), begins, strict=True):
        if begin:
            hidden, content = torch.zeros_like(hidden), torch.zeros_like(content)
        before = hidden.unsqueeze(0), content.unsqueeze(0)
        after = torch.func.functional_call(cell, own, (row.unsqueeze(0), before))
        hidden, content = (part.squeeze(0) for part in after)
        features.append(hidden)
    return torch.stack(features), torch.cat([hidden, content])


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 21))
def test_an_lstm_and_its_gradient_are_those_of_single_cells(seed, steps, envs, width):
    torch.manual_seed(seed)
    lstm = Lstm(3, (width,), "tanh")
    obs, state = torch.randn(steps, envs, 3), torch.randn(envs, 2 * width)
    begins, weight = torch.rand(steps, envs) < 0.2, torch.randn(steps, envs, width)
    features, after = lstm(obs.flatten(0, 1), state, begins.flatten())
    expected = [of_one(lstm, obs[:, e], state[e], begins[:, e]) for e in range(envs)]
    slow = torch.stack([one for one, _ in expected], 1)
    torch.testing.assert_close(features.view_as(slow), slow, atol=2e-6, rtol=0)
    torch.testing.assert_close(after, torch.stack([s for _, s in expected]), atol=2e-6, rtol=0)
    parameters = [*lstm.parameters()]
    got = torch.autograd.grad((features.view_as(slow) * weight).sum(), parameters)
    wanted = torch.autograd.grad((slow * weight).sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_a_transformer_attends_to_what_is_there(seed, steps, missing):
    """Against one observation at a time, of which the missing ones are left out."""
    torch.manual_seed(seed)
    net = Transformer((steps, 4))
    nn.init.normal_(net.place)
    missing = min(missing, steps - 1)
    obs = torch.randn(3, steps, 4)
    obs[..., -1] = 1.0
    obs[0, :missing] = 0.0
    features = net(obs)
    for one, feature in zip(obs, features, strict=True):
        here = one[:, -1] > 0
        x = net.embed(one[here]) + net.place[here]
        for block in net.blocks:
            assert isinstance(block, nn.ModuleDict)
            query, key, value = block["split"](block["norm"](x)).chunk(3, -1)
            heads = []
            for rows in torch.arange(net.width).chunk(net.heads):
                score = query[:, rows] @ key[:, rows].T / math.sqrt(len(rows))
                heads.append(score.softmax(-1) @ value[:, rows])
            x = x + block["join"](torch.cat(heads, -1))
            x = x + block["narrow"](block["widen"](block["norm_after"](x)).relu())
        torch.testing.assert_close(feature, net.norm(x[-1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_an_lstm_acts_by_what_the_learner_computes(shared):
    """Step by step, over the ends of episodes; the critic's state is carried along."""
    space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    # of an observation's 5 entries the last 2 are the critic's alone
    env_spaces = Spaces(space, spaces.Discrete(3), 0, False, 0 if shared else 2)
    config = Config(
        network="lstm", hidden_sizes=(12, 7), normalize_observation=True, shared_trunk=shared
    )
    model = make_model(env_spaces, config)
    assert model._acts.compiled is not None
    steps, envs, rng = 6, 5, np.random.default_rng(0)
    obs = rng.normal(3.0, 2.0, (steps, envs, 5)).astype(np.float32)
    noise = rng.random((steps, envs, *model.distribution.noise_shape), np.float32)
    begins, first = rng.random((steps, envs)) < 0.3, rng.normal(size=(envs, model.state_size))
    model.update_normalizer(torch.from_numpy(obs).flatten(0, 1))
    for _ in range(2):
        state, log_prob, action = first.astype(np.float32), [], []
        for t in range(steps):
            state[begins[t]] = 0.0
            acted = model.act(obs[t], noise[t], None, state)
            assert acted.state is not None
            state = acted.state
            log_prob.append(acted.log_prob)
            action.append(acted.action)
        rows = torch.from_numpy(obs).flatten(0, 1)
        past = Past(torch.from_numpy(first).float(), torch.from_numpy(begins).flatten())
        with torch.no_grad():
            params = model.policy(rows, None, past)
            taken = torch.from_numpy(np.stack(action)).flatten()
            expected = model.distribution.log_prob(params, taken)
            after = [
                trunk(seen, part, past.begins)[1]
                for trunk, seen, part in zip(
                    [model.actor, model.critic],
                    [model.observations.for_policy(model.observations(rows)), model.observations(rows)],
                    past.state.split(model.state_sizes, -1), strict=False,
                )
            ]  # fmt: skip
        np.testing.assert_allclose(np.concatenate(log_prob), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state, torch.cat(after, -1), rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # what is learned in place shows in the next action
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("sizes", [(16, 64), (5, 12), (33,)])
@pytest.mark.parametrize("shared", [False, True])
def test_an_lstms_action_does_not_depend_on_how_many_environments_stand_beside_it(sizes, shared):
    """Of 1 to 40 of them, in states that lie in memory as they like."""
    space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    config = Config(
        network="lstm", hidden_sizes=sizes, normalize_observation=True, shared_trunk=shared
    )
    model = make_model(Spaces(space, spaces.Discrete(3), 0), config)
    assert model._acts.compiled is not None
    rng = np.random.default_rng(0)
    obs = rng.normal(3.0, 2.0, (40, 5)).astype(np.float32)
    noise = rng.random((40, *model.distribution.noise_shape), np.float32)
    state = rng.normal(size=(40, model.state_size)).astype(np.float32)
    model.update_normalizer(torch.from_numpy(obs))
    everyone = model.act(obs, noise, None, state)
    assert everyone.state is not None
    among_others = np.repeat(state, 2, 1)[:, ::2]
    for count in range(1, 41):
        rows = slice(40 - count, None) if count % 2 else slice(count)
        for there in (state, np.asfortranarray(state), among_others):
            acted = model.act(obs[rows], noise[rows], None, there[rows])
            np.testing.assert_array_equal(acted.action, everyone.action[rows])
            np.testing.assert_array_equal(acted.log_prob, everyone.log_prob[rows])
            np.testing.assert_array_equal(acted.state, everyone.state[rows])


@pytest.mark.slow
def test_an_lstms_compiled_steps_are_the_eager_ones():
    (eager, _), (compiled, weights) = learned("off"), learned("on")
    assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-5)
    # the next run loads the step, without torch's compiler, and computes the same
    program = """
import sys, torch
from tests.networks.test_sequence import learned
torch.set_num_threads(THREADS)
print(*learned("on"), "torch._dynamo" in sys.modules)
""".replace("THREADS", str(torch.get_num_threads()))
    done = run_command("-c", program)
    assert done.stdout == f"{compiled} {weights} False\n", done.stderr


def learned(compile: str) -> tuple[dict[str, float], str]:
    """The metrics of an LSTM's first update, and its weights' hash then."""
    settings = {"network": "lstm", "hidden_sizes": (8,), "shared_trunk": True}
    agent, pool = make(small("tests.toy_envs:Remember", compile=compile, **settings))
    assert agent.alg.compiled == (compile == "on")
    metrics = agent.learn(collect(agent, pool), 0.0)
    pool.close()
    return metrics, weights_digest(agent)


def test_only_an_lstms_hidden_states_can_be_differentiated():
    """What its loop back does not compute is refused, and what it does is as without it."""
    gates = torch.randn(3, 2, 8, requires_grad=True)
    weight, state = torch.randn(8, 2), torch.zeros(2, 4)
    hidden, cell, opened = unroll(gates, weight, state, torch.zeros(3, 2, dtype=torch.bool))
    (alone,) = torch.autograd.grad(hidden.sum(), gates, retain_graph=True)
    (beside,) = torch.autograd.grad((hidden + cell.detach()).sum(), gates, retain_graph=True)
    assert torch.equal(alone, beside)
    for other in (cell, opened, torch.cat([hidden, cell])):
        with pytest.raises(NotImplementedError, match="hidden states alone"):
            torch.autograd.grad(other.sum(), gates, retain_graph=True)
