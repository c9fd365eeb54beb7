"""An actor's side of the exchange, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cluster.engines.exchange import Exchange
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.slow

HANGS = """
import sys, time
from cluster.engines.exchange import answer_all
answer_all(sys.argv[1], b"token", lambda message: time.sleep(3600), lambda: None, b"")
"""


def test_an_actor_that_hangs_ends_once_its_learner_is_gone():
    exchange = Exchange("127.0.0.1")
    actor = subprocess.Popen([sys.executable, "-c", HANGS, exchange.endpoint], cwd=ROOT)
    try:
        wait_until(lambda: exchange.receive(0.1)[0], 30, "the actor")
        exchange.send(b"token", b"hang")
        time.sleep(0.5)
        assert actor.poll() is None
    finally:
        exchange.close()
    try:
        assert actor.wait(15) == 1
    finally:
        actor.kill()
