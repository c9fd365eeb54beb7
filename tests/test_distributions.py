from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from distributions import Beta, Categorical, Normal, WrongDistribution, make_distribution

BOX = spaces.Box(np.array([-2.0, 0.0], "f"), np.array([1.0, 5.0], "f"))
KINDS = {
    "normal": Normal(BOX),
    "beta": Beta(BOX),
    "categorical": Categorical(spaces.Discrete(5)),
}


def params_for(distribution, rows=1, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, distribution.params, generator=generator) * scale


def draw(distribution, params, count, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, *distribution.noise_shape)
    noise = rng.standard_normal(shape) if distribution.noise == "normal" else rng.random(shape)
    noise = torch.from_numpy(noise.astype("f"))
    return distribution.sample(params.expand(count, -1), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_minus_the_expected_log_probability(kind):
    distribution = KINDS[kind]
    params = params_for(distribution)
    log_prob = distribution.log_prob(
        params.expand(200_000, -1), draw(distribution, params, 200_000)
    )
    assert distribution.entropy(params).item() == pytest.approx(-log_prob.mean().item(), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_the_expected_log_ratio(kind):
    distribution = KINDS[kind]
    one, two = (
        params_for(distribution, seed=1, scale=0.5),
        params_for(distribution, seed=2, scale=0.5),
    )
    action = draw(distribution, one, 200_000)
    ratio = distribution.log_prob(one.expand(200_000, -1), action) - distribution.log_prob(
        two.expand(200_000, -1), action
    )
    assert distribution.kl(one, two).item() == pytest.approx(
        ratio.mean().item(), rel=0.05, abs=0.01
    )
    assert distribution.kl(one, one).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["normal", "beta"])
def test_density_integrates_to_one(kind):
    distribution = KINDS[kind]
    params = params_for(distribution, scale=0.5)
    # the two dimensions are independent: a grid over both
    low, high = (-8.0, 9.0) if kind == "normal" else (0.0, 1.0)
    edges = [
        np.linspace(*((low, high) if kind == "normal" else (BOX.low[k], BOX.high[k])), 801)
        for k in range(2)
    ]
    middles = [(e[1:] + e[:-1]) / 2 for e in edges]
    grid = torch.tensor(np.stack(np.meshgrid(*middles), -1).reshape(-1, 2), dtype=torch.float32)
    density = distribution.log_prob(params.expand(len(grid), -1), grid).exp()
    cell = np.prod([e[1] - e[0] for e in edges])
    assert density.sum().item() * cell == pytest.approx(1.0, abs=2e-3)


def test_categorical_probabilities_sum_to_one_and_samples_follow_them():
    distribution = KINDS["categorical"]
    params = params_for(distribution)
    probabilities = distribution.log_prob(params.expand(5, -1), torch.arange(5)).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)
    share = torch.bincount(draw(distribution, params, 100_000), minlength=5) / 100_000
    torch.testing.assert_close(share, probabilities, atol=0.01, rtol=0)


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(0, 100))
def test_any_noise_gives_a_legal_action(noise, seed):
    for distribution in (KINDS["categorical"], KINDS["beta"]):
        params = params_for(distribution, seed=seed, scale=20.0)
        action = distribution.sample(params, torch.full((1, *distribution.noise_shape), noise))
        assert torch.isfinite(distribution.log_prob(params, action)).all()
        if distribution.action_dtype == "int64":
            assert 0 <= action.item() < 5
        else:
            assert BOX.contains(distribution.to_env(action.numpy())[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    distribution = KINDS[kind]
    params = params_for(distribution, rows=3).double().requires_grad_()
    action = draw(distribution, params_for(distribution), 3).to(
        torch.int64 if kind == "categorical" else torch.float64
    )
    assert torch.autograd.gradcheck(lambda p: distribution.log_prob(p, action), (params,))
    assert torch.autograd.gradcheck(distribution.entropy, (params,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_company(kind):
    distribution = KINDS[kind]
    params, action = (
        params_for(distribution, rows=64),
        draw(distribution, params_for(distribution), 64),
    )
    whole = distribution.log_prob(params, action)
    for rows in range(1, 64):
        part = distribution.log_prob(params[:rows].clone(), action[:rows].clone())
        assert torch.equal(part, whole[:rows])


def test_normal_actions_are_clipped_for_the_environment_only():
    action = np.array([[-9.0, 9.0]], "f")
    np.testing.assert_array_equal(KINDS["normal"].to_env(action), [[-2.0, 5.0]])


def test_the_default_follows_the_action_space_and_a_misfit_names_what_fits():
    assert isinstance(make_distribution("auto", BOX), Normal)
    assert isinstance(make_distribution("auto", spaces.Discrete(3)), Categorical)
    with pytest.raises(WrongDistribution, match="give categorical or auto"):
        make_distribution("beta", spaces.Discrete(3))
    with pytest.raises(WrongDistribution, match="give normal"):
        make_distribution("beta", spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(WrongDistribution, match="normal, beta or auto"):
        make_distribution("categorical", BOX)
