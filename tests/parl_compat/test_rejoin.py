"""How long a worker waits for a master that is gone."""

from __future__ import annotations

import socket
import threading
import time

from common.ports import free_port
from parl_compat.shim import load_parl

load_parl()

from parl_compat import rejoin  # noqa: E402


def test_a_worker_waits_for_its_master_for_a_while(monkeypatch):
    monkeypatch.setattr(rejoin, "MASTER_PATIENCE_S", 0.3)
    monkeypatch.setattr(rejoin, "LOOK_S", 0.05)
    port = free_port()
    start = time.monotonic()
    assert not rejoin.comes_back(f"127.0.0.1:{port}")
    assert time.monotonic() - start >= 0.3
    monkeypatch.setattr(rejoin, "MASTER_PATIENCE_S", 60.0)
    with socket.socket() as master:
        master.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        master.bind(("127.0.0.1", port))
        listens = threading.Timer(0.3, master.listen)
        listens.start()
        assert rejoin.comes_back(f"127.0.0.1:{port}")
        listens.join()
