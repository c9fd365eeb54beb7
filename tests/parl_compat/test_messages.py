"""What PARL's processes take from each other: messages that are checked, and no pickles."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import threading
from collections import deque
from pathlib import Path

import cloudpickle
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from parl_compat import keys, messages
from parl_compat.placement import Placement
from parl_compat.shim import load_parl
from tests.conftest import wait_until

parl = load_parl()

from parl.remote import client, message, remote_wrapper  # noqa: E402

ADDRESS = "127.0.0.1:4000"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def a_job(job_address: str = ADDRESS, ping_address: str = ADDRESS) -> message.InitializedJob:
    job = message.InitializedJob(job_address, ADDRESS, ping_address, ADDRESS, 4711, "a_1", ADDRESS)
    job.remove_job_address = ADDRESS
    job.allocated_cpu = message.AllocatedCpu(ADDRESS, 1)
    job.allocated_gpu = message.AllocatedGpu(ADDRESS, "0,1")
    return job


def fields(value) -> object:
    if isinstance(value, list):
        return [fields(item) for item in value]
    return {n: fields(v) for n, v in vars(value).items()} if hasattr(value, "__dict__") else value


def test_what_is_packed_is_unpacked():
    worker = message.InitializedWorker(
        ADDRESS,
        [a_job()],
        message.AllocatedCpu(ADDRESS, 4),
        message.AllocatedGpu(ADDRESS, ""),
        "pc",
    )
    for value in (a_job(), worker):
        there = messages.unpack(messages.pack(value))
        assert type(there) is type(value)
        assert fields(there) == fields(value)
    for value in (None, 1.5, "é", [1, [2]], {"a": {"b": None}}, {"x", "y"}, set()):
        assert messages.unpack(messages.pack(value)) == value
    assert messages.unpack(messages.pack({"load": deque([1, 2])})) == {"load": [1, 2]}
    with pytest.raises(TypeError, match="returned a object"):
        messages.pack(object())


@settings(max_examples=int(os.environ.get("FUZZ_CASES", "100")))
@given(data=st.data())
def test_anything_else_is_refused(data: st.DataObject):
    anything = st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
    whole = json.loads(messages.pack(a_job()))
    name = data.draw(st.sampled_from(sorted(whole["job"])))
    wrong = data.draw(anything.filter(lambda v: not isinstance(v, bytes)))
    content = data.draw(
        st.binary(max_size=100)
        | st.just(json.dumps({"job": whole["job"] | {name: wrong}}).encode())
        | st.just(json.dumps({data.draw(st.text(max_size=9)): wrong}).encode())
        | st.just(b"[" * 100_000)
    )
    with contextlib.suppress(messages.BadMessage):
        taken = messages.unpack(content)
        if isinstance(taken, message.InitializedJob):
            assert isinstance(taken.pid, int)
            assert taken.pid > 1
            assert ":" in taken.job_address


@pytest.mark.parametrize("change", [
    {"pid": -1}, {"pid": 0}, {"pid": True}, {"job_address": "127.0.0.1:1;2"}, {"job_id": "<b>"},
    {"job_address": None}, {"more": 1}, {"gpu": "$(x)"},
])  # fmt: skip
def test_a_job_that_names_what_it_must_not_is_refused(change):
    job = json.loads(messages.pack(a_job()))["job"]
    with pytest.raises(messages.BadMessage, match="not a message: "):
        messages.unpack(json.dumps({"job": job | change}).encode())


def test_text_of_a_status_is_no_html():
    status = {"clients": {"a": {"file_path": "<img src=x onerror=alert(1)>"}}}
    shown = messages.unpack_for_page(messages.pack(status))
    assert shown == {"clients": {"a": {"file_path": "&lt;img src=x onerror=alert(1)&gt;"}}}


class Hostile:
    """A master, a worker and an actor of the key's holder: they answer what they are told to.

    Attributes:
        answers: by the tag of a question.
        asked: the tags of all questions.
    """

    def __init__(self):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REP)
        keys.secure(self.socket)
        self.address = f"127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.answers: dict[bytes, list[bytes]] = {}
        self.asked: list[bytes] = []
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def _answer(self) -> None:
        with contextlib.suppress(zmq.ContextTerminated):
            while True:
                tag, *_ = self.socket.recv_multipart()
                self.asked.append(tag)
                self.socket.send_multipart(self.answers.get(tag, [b"[NORMAL]"]))
        self.socket.close(linger=0)

    def close(self) -> None:
        self.context.term()
        self.thread.join()


class Counter:
    """The class of a remote object. Nobody ever makes one."""


Counter.__module__ = "made_up"


# a reply to the learner -> the tag of the question, and what of the remote object is used
REPLIES = {
    "connect": (b"[CLIENT_CONNECT]", None),
    "version": (b"[CHECK_VERSION]", None),
    "status": (b"[CLIENT_STATUS_UPDATE_TAG]", None),
    "submit": (b"[CLIENT_SUBMIT]", None),
    "ping": (b"[HEARTBEAT]", None),
    "files": (b"[SEND_FILE]", None),
    "init": (b"[INIT_OBJECT]", None),
    "call": (b"[CALL]", lambda remote: remote.get_remote_attr("count")()),
    "exception": (b"[CALL]", lambda remote: remote.get_remote_attr("count")()),
    "attribute": (b"[GET_ATTRIBUTE]", lambda remote: remote.get_remote_attr("x")),
    "set": (b"[SET_ATTRIBUTE]", lambda remote: remote.set_remote_attr("x", 1)),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_a_learner_executes_nothing_that_master_or_actor_answer(tmp_path, monkeypatch, reply):
    path = tmp_path / "executed"
    bomb, none, names = cloudpickle.dumps(Bomb(path)), messages.pack(None), messages.pack({"x"})
    there = Hostile()
    version = [parl.__version__, sys.version_info.major, sys.version_info.minor, None]
    there.answers = {
        b"[CHECK_VERSION]": [b"[NORMAL]", *(str(part).encode() for part in version)],
        b"[CLIENT_CONNECT]": [b"[NORMAL]", b"http://127.0.0.1/"],
        b"[CLIENT_SUBMIT]": [b"[NORMAL]", messages.pack(a_job(there.address, there.address))],
        b"[INIT_OBJECT]": [b"[NORMAL]", names],
        b"[CALL]": [b"[NORMAL]", none, names],
        b"[GET_ATTRIBUTE]": [b"[NORMAL]", none],
        b"[SET_ATTRIBUTE]": [b"[NORMAL]", names],
    }
    question, use = REPLIES[reply]
    answer = [b"[EXCEPTION]" if reply == "exception" else b"[NORMAL]", *[bomb] * 4]
    there.answers[question] = answer
    monkeypatch.setattr(client, "GLOBAL_CLIENT", None)
    learner = None
    try:
        with contextlib.suppress(Exception):  # whatever it is
            client.GLOBAL_CLIENT = learner = client.Client(there.address, os.getpid())
            remote = remote_wrapper_of(Counter)
            if use is not None:
                use(remote)
        wait_until(lambda: question in there.asked, 10, "the question")
        assert not path.exists()
    finally:
        if learner is not None:
            learner.connected_to_master = False
            learner.client_is_alive.value = False
            learner.dead_job_queue.put("exit")
            learner.master_heartbeat_thread.exit()
            learner.job_heartbeat_process.join()
        there.close()
    pickle.loads(bomb)
    assert path.exists()  # the bomb is real


def remote_wrapper_of(cls: type) -> remote_wrapper.RemoteWrapper:
    from parl_compat.learner import PlacedObject

    return PlacedObject(
        _xparl_remote_class=cls,
        _xparl_remote_class_max_memory=None,
        _xparl_remote_class_n_gpu=0,
        placement=Placement(),
    )
