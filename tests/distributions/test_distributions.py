from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from common.randomness import draw_noise
from distributions.base import WrongDistribution
from distributions.continuous import Beta, Normal, TanhNormal
from distributions.discrete import (
    Categorical,
    CellLogits,
    GridMultiDiscrete,
    MultiDiscrete,
    UnitSelection,
)
from distributions.make import CONTINUOUS, Options, make_distribution

BOX = spaces.Box(np.array([-2.0, 0.0], "f"), np.array([1.0, 5.0], "f"))
KINDS = {
    "normal": Normal(BOX, state_dependent_std=True),
    "tanh_normal": TanhNormal(BOX, state_dependent_std=True),
    "beta": Beta(BOX),
    "multi_discrete": MultiDiscrete((3, 2, 4)),
    "categorical": Categorical(spaces.Discrete(5)),
}


DISCRETE = ("categorical", "multi_discrete")


def params_for(distribution, rows=1, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, distribution.outputs, generator=generator) * scale


def noise_for(distribution, rng, rows):
    return draw_noise(rng, distribution.noise, (rows, *distribution.noise_shape))


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


@pytest.mark.parametrize("kind", ["normal", "tanh_normal", "beta"])
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
    if kind == "tanh_normal":  # whose action is that before it is squashed
        width = torch.from_numpy(BOX.high - BOX.low)
        grid = torch.atanh(2 * (grid - torch.from_numpy(BOX.low)) / width - 1)
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
    for distribution in (KINDS["categorical"], KINDS["beta"], KINDS["tanh_normal"]):
        params = params_for(distribution, seed=seed, scale=20.0)
        action = distribution.sample(params, torch.full((1, *distribution.noise_shape), noise))
        assert torch.isfinite(distribution.log_prob(params, action)).all()
        if distribution.action_dtype == "int64":
            assert 0 <= action.item() < 5
        else:
            assert BOX.contains(distribution.to_env(action.numpy())[0])


def random_mask(distribution, rows=200, seed=0):
    mask = np.random.default_rng(seed).random((rows, distribution.outputs)) < 0.5
    mask[:5] = False
    return torch.from_numpy(mask)


def slow_masked(logits, mask, sizes):
    """Each sub-action's probabilities over its legal values, in float64; None without any."""
    edges = np.cumsum([0, *sizes])
    for first, last in itertools.pairwise(edges):
        legal = mask[first:last].numpy()
        if not legal.any():
            yield None
            continue
        weight = np.where(legal, np.exp(logits[first:last].double().numpy()), 0.0)
        yield weight / weight.sum()


@pytest.mark.parametrize("kind", DISCRETE)
def test_masked_probabilities_are_those_of_the_legal_values(kind):
    distribution = KINDS[kind]
    sizes = (5,) if kind == "categorical" else distribution.components
    logits, mask = params_for(distribution, rows=200), random_mask(distribution)
    noise = torch.rand(200, *distribution.noise_shape, generator=torch.Generator().manual_seed(0))
    action, params, stored = distribution.choose(logits, mask, noise)
    assert torch.equal(stored, mask)
    log_prob = distribution.sub_log_prob(params, action)
    entropy = distribution.entropy(params)
    for row in range(200):
        expected = 0.0
        for k, probabilities in enumerate(slow_masked(logits[row], mask[row], sizes)):
            if probabilities is None:
                assert log_prob[row, k] == 0
                assert action[row].reshape(-1)[k] == 0
                continue
            chosen = action[row].reshape(-1)[k]
            assert log_prob[row, k].item() == pytest.approx(np.log(probabilities[chosen]), abs=1e-5)
            some = probabilities[probabilities > 0]
            expected -= (some * np.log(some)).sum()
        assert entropy[row].item() == pytest.approx(expected, abs=1e-5)
    leaf = logits.clone().requires_grad_()
    params = distribution.masked(leaf, mask)
    (distribution.log_prob(params, action).sum() + distribution.entropy(params).sum()).backward()
    gradient = leaf.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[:5] == 0).all()
    assert torch.equal(distribution.choose(logits, mask, None).action[:5], action[:5])


def test_a_grid_of_cells_is_as_many_multi_discretes_as_may_act():
    plain, grid = MultiDiscrete((3, 2)), GridMultiDiscrete((3, 2), 4)
    logits, generator = params_for(plain, rows=5, seed=3), torch.Generator().manual_seed(0)
    acting = torch.tensor([0, 3, 4, 9, 11])  # two cells of the first row, one and two of the others
    params = CellLogits(logits, acting, 3)
    noise = torch.rand(3, 8, generator=generator)
    action = grid.sample(params, noise)
    by_cell = action.view(-1, 2)
    alone = plain.sample(logits, noise.view(-1, 2)[acting])
    assert torch.equal(by_cell[acting], alone)
    assert by_cell.sum() == alone.sum()  # the others are 0
    log_prob = torch.zeros(12, 2)
    log_prob[acting] = plain.sub_log_prob(logits, alone)
    torch.testing.assert_close(grid.sub_log_prob(params, action), log_prob.view(3, 8))
    entropy = torch.zeros(12).index_copy(0, acting, plain.entropy(logits)).view(3, 4).sum(1)
    torch.testing.assert_close(grid.entropy(params), entropy)


def test_the_joint_log_probability_is_the_sum_over_sub_actions():
    for distribution in KINDS.values():
        params = params_for(distribution, rows=7)
        action = draw(distribution, params_for(distribution), 7)
        parts = distribution.sub_log_prob(params, action)
        assert parts.shape == (7, distribution.sub_actions)
        torch.testing.assert_close(parts.sum(-1), distribution.log_prob(params, action))


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("state_dependent", [False, True])
def test_every_distribution_shapes_its_parameters_and_chooses(name, state_dependent):
    options = Options(initial_log_std=-0.5, state_dependent_std=state_dependent)
    distribution = make_distribution(name, BOX, options)
    output, rng = torch.zeros(6, distribution.outputs), np.random.default_rng(0)
    params = distribution.shaped(output, distribution.own)
    noise = torch.from_numpy(noise_for(distribution, rng, 6))
    for drawn, expected in (
        (noise, distribution.sample(params, noise)),
        (None, distribution.mode(params)),
    ):
        chosen = distribution.choose(params, None, drawn)
        assert torch.equal(chosen.action, expected)
        assert torch.equal(chosen.params, params)
        assert chosen.mask is None
    if name == "beta":
        assert distribution.own is None
        return
    assert (distribution.own is None) == state_dependent
    torch.testing.assert_close(params[:, 2:], torch.full((6, 2), -0.5))


def test_compiled_samples_are_those_of_torch():
    rng = np.random.default_rng(0)
    for name, space in (("normal", BOX), ("categorical", spaces.Discrete(5))):
        distribution = make_distribution(name, space)
        output = rng.standard_normal((40, distribution.outputs), np.float32)
        noise = noise_for(distribution, rng, 40)
        compiled = distribution.sample_compiled(output, distribution.own, noise)
        assert compiled is not None
        params = distribution.shaped(torch.from_numpy(output), distribution.own)
        action = distribution.sample(params, torch.from_numpy(noise))
        by_sub_action = distribution.sub_log_prob(params, action)
        np.testing.assert_allclose(compiled[0], action, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(compiled[1], by_sub_action, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(compiled[2], by_sub_action.sum(-1), rtol=1e-5, atol=1e-5)
    assert TanhNormal(BOX).sample_compiled(output, TanhNormal(BOX).own, noise) is None


def test_structures_of_a_grid_are_named_by_the_environment_not_guessed_from_sizes():
    sizes = spaces.MultiDiscrete([6, 4, 6, 4, 6, 4])
    assert type(make_distribution("auto", sizes)) is MultiDiscrete
    grid = make_distribution("auto", sizes, structure=("grid", 3))
    assert isinstance(grid, GridMultiDiscrete)
    assert (grid.components, grid.cells, grid.mask_size, grid.sub_actions) == ((6, 4), 3, 30, 6)
    unit = make_distribution(
        "auto", spaces.MultiDiscrete([9, 6, 4]), structure=("unit_selection", 9)
    )
    assert isinstance(unit, UnitSelection)
    assert (unit.components, unit.choices) == ((9, 6, 4), 10)


def test_actions_scaled_to_the_bounds():
    action = np.array([[-1.0, 1.0], [0.0, -7.0]], "f")
    np.testing.assert_allclose(Normal(BOX, scaled=True).to_env(action), [[-2, 5], [-0.5, 0]])
    np.testing.assert_allclose(
        KINDS["tanh_normal"].to_env(np.array([[-30.0, 0.0]], "f")), [[-2, 2.5]]
    )


@pytest.mark.parametrize(
    "distribution", [*KINDS.values(), Normal(BOX, scaled=True)], ids=[*KINDS, "scaled"]
)
def test_torch_puts_actions_into_the_bounds_as_numpy_does(distribution):
    action = draw(distribution, 3 * params_for(distribution), 500)
    wanted = distribution.to_env(action.numpy())
    given = distribution.to_env_tensor(action).numpy()
    assert given.dtype == wanted.dtype
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    distribution = KINDS[kind]
    params = params_for(distribution, rows=3).double().requires_grad_()
    action = draw(distribution, params_for(distribution), 3).to(
        torch.int64 if kind in DISCRETE else torch.float64
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


def test_multi_discrete_actions_can_be_computed_with():
    stored = np.array([[0, 1]], np.uint8)
    given = MultiDiscrete((3, 2)).to_env(stored)
    given -= 1
    np.testing.assert_array_equal(given, [[-1, 0]])
    np.testing.assert_array_equal(stored, [[0, 1]])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-3.0, -0.8, (1,), np.float32),  # low + (high - low) rounds to more than high
        spaces.Box(-0.1, 0.1, (1,), np.float64),  # 0.1 rounds to more than itself
        spaces.Box(0.3, 0.7, (1,), np.float64),
    ],
    ids=str,
)
def test_no_action_leaves_its_bounds(space):
    for distribution in (
        Normal(space), Normal(space, scaled=True), TanhNormal(space), Beta(space),
    ):  # fmt: skip
        for action in (-50.0, -1.0, 0.3, 1.0, 50.0):
            stored = np.full((1, 1), action, np.float32)
            given = (distribution.to_env(stored), distribution.to_env_tensor(torch.tensor(stored)))
            assert all(space.contains(np.asarray(one[0])) for one in given), (distribution, given)


@pytest.mark.parametrize(
    ("low", "high"), [([0.0, 0.0], [1.0, 0.0]), ([-3e38, 0.0], [3e38, 1.0]), ([0.0], [np.inf])]
)
def test_bounds_without_a_width_are_refused_where_they_are_needed(low, high):
    space = spaces.Box(np.array(low, "f"), np.array(high, "f"))
    for name in ("beta", "tanh_normal"):
        with pytest.raises(WrongDistribution, match="between two bounds"):
            make_distribution(name, space)
    if low == [0.0, 0.0]:  # a component of one value is no obstacle where none is divided by
        scaled = make_distribution("normal", space, Options(True))
        np.testing.assert_array_equal(scaled.to_env(np.ones((1, 2), "f")), [[1.0, 0.0]])
    else:
        with pytest.raises(WrongDistribution, match="between two bounds"):
            make_distribution("normal", space, Options(True))


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
