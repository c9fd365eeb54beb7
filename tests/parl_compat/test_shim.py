from __future__ import annotations

import socket

import zmq

from parl_compat.shim import HOST_VARIABLE, load_parl, port_is_free

load_parl()


def test_sockets_of_the_user_listen_where_the_user_says():
    with zmq.Context() as context, context.socket(zmq.REP) as reply:
        reply.bind("tcp://*:0")
        endpoint = reply.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        assert endpoint.startswith(b"tcp://0.0.0.0:")


def test_parls_sockets_listen_on_the_one_address():
    from parl.remote.zmq_utils import create_server_socket

    with zmq.Context() as context:
        reply, _ = create_server_socket(context)
        assert reply.getsockopt(zmq.LAST_ENDPOINT).startswith(b"tcp://127.0.0.1:")
        reply.close()


def test_a_port_is_free_or_taken_at_the_address_that_will_be_used(monkeypatch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.2", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert port_is_free(port)
        monkeypatch.setenv(HOST_VARIABLE, "127.0.0.2")
        assert not port_is_free(port)
    assert not port_is_free(65536)  # PARL asks for that of its monitor, beside a port near the last
