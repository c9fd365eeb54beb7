"""Where a run's gradient step is compiled, if no earlier run has kept it.

Either the learner compiles it before its first update, or, with `--compile beside`, a process of its
own does so while the run learns eagerly. That process makes an agent like the run's, which compiles
its step and keeps it on disk (`learning.kept_step`); there the run's agent finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable

import torch

from agent import PPOAgent, make_agent
from cluster.child import Child, ChildEnded, end_with_parent, parent
from cluster.sampler import spec_of
from learning import kept_step
from settings.config import Config


class Compiling:
    """The learner's side: says that its step is compiled, or has another process do it.

    Args:
        config: the run's settings.
        device: the learner's. What is compiled for a GPU cannot be kept for another process.
        leads: whether this trainer speaks for those that compile as it does.
        say: prints a line.

    Attributes:
        beside: whether another process compiles what is not kept.
    """

    def __init__(self, config: Config, device: str, leads: bool, say: Callable[[str], None]):
        self.beside = config.compile == "beside" and device == "cpu"
        self._config, self._leads, self._say = config, leads, say
        self._has_begun = False
        self._child: Child | None = None

    def here(self) -> bool:
        """Whether the learner compiles now what no earlier run has kept. Otherwise a process begins to."""
        if not self._has_begun:
            self._has_begun = True
            if self.beside:
                self._start()
            elif self._leads:
                self._say("the gradient step is compiled, which takes some 20 s the first time")
        return not self.beside

    def _start(self) -> None:
        self._child = Child(__name__, niceness=5)  # as samplers have: the learner goes first
        hello = {"config": self._config.to_dict(), "threads": torch.get_num_threads()}
        with contextlib.suppress(ChildEnded):  # `poll` says so
            self._child.send(json.dumps(hello).encode())
        self._say(
            "another process compiles the gradient step; until it is done the run learns eagerly, so it"
            " cannot be repeated to the bit"
        )

    def poll(self, agent: PPOAgent) -> None:
        """Between two updates: if the process is done, let the agent go on with what it has compiled."""
        if self._child is None or not self._child.poll():
            return
        try:
            problem = self._child.receive().decode()
        except ChildEnded as ended:
            problem = str(ended)
        self.close()
        if agent.alg.take_compiled():
            self._say(f"the compiled gradient step takes over after update {agent.update}")
        else:
            self._say(
                f"what was not compiled goes on eagerly, the gradient step or the values: {problem}"
            )

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
        self._child = None


def serve() -> None:
    """Run the process: compile, and say what went wrong, if anything did."""
    connection, _ = parent()
    with contextlib.suppress(EOFError, ConnectionError):  # the learner ended
        hello = json.loads(connection.recv_bytes())
        end_with_parent(connection, patience=0.0)  # and with it the compiler's processes
        torch.set_num_threads(hello["threads"])  # other code is made for other numbers
        connection.send_bytes(_compile(Config(**hello["config"])).encode())


def _compile(config: Config) -> str:
    """Compile and keep a run's gradient step; why it may not be kept."""
    try:
        agent = make_agent(dataclasses.replace(config, compile="on"))
        agent.compile(spec_of(agent.model, config))
    except Exception as error:  # torch's compiler may raise anything
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        first_line = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first_line} (`--compile on` shows more)"
    return f"it is not in {kept_step.place()}, which may be full, or others may write there"
