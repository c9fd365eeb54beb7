from __future__ import annotations

import itertools

import numpy as np

from common.randomness import Purpose, draw_noise, stream


def test_a_stream_is_a_function_of_its_arguments_and_no_two_are_alike():
    purposes: tuple[Purpose, ...] = ("reset", "action", "shuffle")
    places = list(itertools.product(purposes, (0, 1), (0, 1, 2)))
    drawn = {place: stream(*place).random(4).tobytes() for place in places}
    assert len(set(drawn.values())) == len(places)
    assert drawn == {place: stream(*place).random(4).tobytes() for place in places}


def test_neighbouring_streams_are_uncorrelated():
    columns = np.stack(
        [stream("action", 1, fragment).standard_normal(20_000) for fragment in range(6)]
    )
    correlation = np.corrcoef(columns) - np.eye(6)
    assert np.abs(correlation).max() < 0.04


def test_noise_is_of_the_kind_that_is_asked_for():
    normal, uniform = (
        draw_noise(stream("action", 1, 0), kind, (5000, 4)) for kind in ("normal", "uniform")
    )
    assert {(noise.dtype.name, noise.shape) for noise in (normal, uniform)} == {
        ("float32", (5000, 4))
    }
    np.testing.assert_allclose([normal.mean(), normal.std()], [0.0, 1.0], atol=0.02)
    assert 0.0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1.0
