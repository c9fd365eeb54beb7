from __future__ import annotations

import pytest
import torch

from networks.precision import choose_acting_dtype, choose_bfloat16
from settings.config import Config

CPU = torch.device("cpu")


@pytest.fixture(
    params=[(True, True), (False, True), (True, False)],
    ids=["has bfloat16", "has none", "has it, and oneDNN may not use it"],
)
def has_it(request, monkeypatch) -> bool:
    """Whether the processor has instructions for it that torch uses."""
    exists, taken = request.param
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: exists)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: taken)
    return exists and taken


def test_bfloat16_is_for_images_where_the_processor_has_it(has_it):
    assert choose_bfloat16(Config(network="nature_cnn"), CPU) == has_it
    assert not choose_bfloat16(Config(network="mlp"), CPU)
    assert not choose_bfloat16(Config(network="nature_cnn", precision="float32"), CPU)


def test_samplers_act_as_the_learner_computes_where_their_processor_can(has_it):
    fast = torch.bfloat16 if has_it else torch.float32
    assert choose_acting_dtype(Config(network="impala")) is fast
    assert choose_acting_dtype(Config(network="impala", precision="bfloat16")) is fast
    assert choose_acting_dtype(Config(network="impala", precision="float32")) is torch.float32
    assert choose_acting_dtype(Config(network="mlp")) is torch.float32
