"""The process that compiles the gradient step while the run learns already (`--compile beside`).

It makes an agent like the run's, has its step compiled, and ends. The compiled step is kept on disk
(`learning.kept_step`), where the run's own agent finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import traceback
from collections.abc import Callable

import torch

from agent import PPOAgent, make_agent
from cluster.child import Child, ChildEnded, parent
from cluster.sampler import spec_of
from rollout import RolloutSpec
from settings.config import Config


class Compiling:
    """The learner's side: starts the process, and has the agent take what it has compiled.

    Args:
        config: the run's settings.
        agent: the run's, which learns eagerly until then.
        spec: shapes of a rollout.
        say: prints a line.
    """

    def __init__(
        self, config: Config, agent: PPOAgent, spec: RolloutSpec, say: Callable[[str], None]
    ):
        self._agent, self._spec, self._say = agent, spec, say
        self._child: Child | None = Child(__name__, niceness=5)  # as samplers have
        with contextlib.suppress(ChildEnded):  # `poll` says so
            hello = {"config": config.to_dict(), "threads": torch.get_num_threads()}
            self._child.send(json.dumps(hello).encode())
        say("the gradient step is compiled beside the run, which learns eagerly until then: when that"
            " is, is a matter of time, so this run cannot be repeated to the bit")  # fmt: skip

    def poll(self) -> None:
        """Between two updates: let the agent take the compiled step, once it is there."""
        if self._child is None or not self._child.poll():
            return
        try:
            error = json.loads(self._child.receive())["error"]
        except ChildEnded as ended:
            error = str(ended)
        self.close()
        if self._agent.compile(self._spec):
            self._say(
                f"the compiled gradient step has taken over after update {self._agent.update}"
            )
        else:
            self._say(f"the gradient step was not compiled, the run learns eagerly: {error}")

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
        self._child = None


def serve() -> None:
    """Run the process: compile, and say how it went."""
    connection, _ = parent()
    with contextlib.suppress(EOFError, ConnectionError):  # the learner ended
        hello = json.loads(connection.recv_bytes())
        torch.set_num_threads(hello["threads"])  # other code is made for other numbers
        config = Config(**hello["config"])
        error = "the disk did not take it"
        try:
            agent = make_agent(dataclasses.replace(config, compile="on"))
            agent.compile(spec_of(agent.model, config))
        except Exception:  # torch's compiler may raise anything
            error = traceback.format_exc()
        connection.send_bytes(json.dumps({"error": error}).encode())
