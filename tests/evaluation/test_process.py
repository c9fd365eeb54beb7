from __future__ import annotations

import time

from evaluation.process import Evaluator
from model import build_model
from rollout import Weights
from settings.config import Config


def test_the_evaluator_never_waits_and_skips_to_the_newest_weights():
    config = Config(env="tests.toy_envs:Slow", test_episodes=1)
    model = build_model(config)
    evaluator = Evaluator(config, Weights(0, model.get_weights()))
    try:
        begun = time.monotonic()
        for version in range(5):
            evaluator.submit(Weights(version, model.get_weights()), step=version)
        assert evaluator.poll() is None  # the first still runs
        finished = []
        while len(finished) < 2:
            evaluation = evaluator.poll()
            if evaluation is not None:
                finished.append(evaluation)
            assert time.monotonic() - begun < 60
        assert [e.step for e in finished] == [0, 4]
        assert finished[0].scores.returns == [10.0]
        evaluator.submit(Weights(5, model.get_weights()), 5)
        evaluator.submit(Weights(6, model.get_weights()), 6)
        assert evaluator.last(Weights(7, model.get_weights()), 7).step == 7
        assert evaluator.poll() is None
    finally:
        evaluator.close()
