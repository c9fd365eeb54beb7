from __future__ import annotations

import pytest
import torch

from cluster.sampler import Sampler
from networks.images import impala, nature_cnn
from networks.packed import PackedNetwork
from networks.precision import choose_acting_dtype
from settings.sources import preset
from tests.test_model import needs_bfloat16

DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


@pytest.mark.parametrize("make", [nature_cnn, impala])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_have_the_same_bits_in_any_company(make, dtype):
    torch.manual_seed(0)
    network, images = make((4, 40, 40)), torch.rand(140, 4, 40, 40).to(dtype)
    packed = PackedNetwork(network, dtype)
    whole = packed(images)
    for rows in (4, 7, 16, 33, 70, 131):
        for first in range(0, len(images) - rows + 1, rows):
            part = slice(first, first + rows)
            assert torch.equal(packed(images[part]), whole[part])


@pytest.mark.parametrize("make", [nature_cnn, impala])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_the_networks_own_and_rounded_as_the_dtype_says(make, dtype):
    torch.manual_seed(0)
    network, images = make((4, 40, 40)), torch.rand(6, 4, 40, 40)
    features = PackedNetwork(network, dtype)(images.to(dtype))
    with torch.no_grad():
        expected = network(images)
    error = float((features - expected).abs().max() / expected.abs().max())
    assert features.dtype == torch.float32
    if dtype == torch.float32:
        assert error < 1e-5
    else:
        assert 1e-5 < error < 5e-2


def test_a_sampler_of_images_acts_by_a_packed_network():
    config = preset("PongNoFrameskip-v4")
    sampler = Sampler(config, 0, 1)
    assert sampler.model._acts.packed is not None
    assert sampler.model._acts.packed.dtype is choose_acting_dtype(config)
    sampler.close()
