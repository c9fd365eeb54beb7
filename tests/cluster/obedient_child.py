"""The module that the children of test_child.py run: it does as each message says."""

from __future__ import annotations

import importlib
import os
import struct
import subprocess
import time

from cluster.child import answer_all, parent


def serve() -> None:
    connection, _ = parent()

    def handle(message: bytes) -> bytes:
        word, _, rest = message.decode().partition(" ")
        if word == "end":
            os._exit(int(rest))
        if word == "sleep":
            time.sleep(float(rest))
        if word == "half":  # of an answer, and no more
            os.write(connection.fileno(), struct.pack("!i", 2_000_000) + b"x" * 1000)
            time.sleep(600)
        if word == "where":
            return str(importlib.import_module(rest).__file__).encode()
        if word == "start":
            return str(subprocess.Popen(rest.split()).pid).encode()
        answers = {
            "echo": rest,
            "niceness": os.nice(0),
            "scheduler": os.sched_getscheduler(0),
            "variable": os.environ.get(rest),
            "leads": os.getpgid(0) == os.getpid(),
        }
        return str(answers[word]).encode()

    answer_all(connection, handle, lambda: None, b"")
