"""A trainer of a group, in a process of its own: what it computes in some updates."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C._distributed_c10d import FileStore

from agent import NotFinite, PPOAgent
from algorithm import PPO
from cluster import wire
from cluster.child import Child, parent
from cluster.engines.inline import InlineEngine
from cluster.lockstep import LockstepPool
from cluster.sampler import spec_of
from cluster.supervisor import Supervisor
from common.errors import TrainerLost, UserError
from envs import spaces_of
from learning.common_memory import CommonMemory
from learning.hardware import refuse_unlike
from learning.linked import Linked
from learning.trainers import Trainers
from model import make_model
from settings.config import Config
from tests.test_agent import small
from training.agreement import WeightsDiffer
from training.shared_pool import SharedPool
from training.trainer import Trainer

Result = tuple[dict[str, Any], dict[str, np.ndarray]]


def parts(trainers: Trainers, config: Config) -> tuple[PPOAgent, SharedPool]:
    model = make_model(spaces_of(config.env, **config.env_options()), config)
    engine = InlineEngine(config, spec_of(model, config), trainers.envs(config))
    pool = SharedPool(LockstepPool(Supervisor(engine, print)), trainers)
    return PPOAgent(PPO(model, config, trainers), config), pool


def updates(trainers: Trainers, env: str, settings: dict[str, Any]) -> Result:
    """Two updates, whose batch is one minibatch; their metrics, and the agent's state."""
    sizes = {"minibatch_size": 256, "learning_rate": 1e-3}
    agent, pool = parts(trainers, small(env, **(sizes | settings)))
    metrics = []
    for fragment in range(2):
        pool.request(agent.weights(), fragment, reset=fragment == 0)
        rollout = pool.gather()
        counted = {"steps": rollout.steps, "episodes": len(rollout.episodes)}
        metrics.append(counted | agent.learn(rollout, fragment / 2))
    pool.close()
    arrays, counters = agent.state()
    return {"metrics": metrics, "counters": counters}, arrays


def differ(trainers: Trainers, run_dir: str) -> Result:
    """At a run's end the second trainer has changed a statistic; what each has to say."""
    config = Config(env="CartPole-v1", normalize_observation=True, samplers=0, compile="off",
                    train_total_steps=100)  # fmt: skip
    with Trainer(config, Path(run_dir), "cpu", spaces_of(config.env), trainers) as trainer:
        trainer.global_step = config.train_total_steps
        trainer.agent.update = 7
        alike = trainer.agreement.decide("finished")
        trainer.agent.update = 9
        assert trainer.agent.model.moments is not None
        trainer.agent.model.moments.mean += trainers.rank
        try:
            trainer.agreement.decide("finished")
        except WeightsDiffer as error:
            return {"alike": alike, "error": str(error)}, {}
    return {"alike": alike, "error": ""}, {}


def unlike(trainers: Trainers) -> Result:
    """What each has to say of a choice that is the same for all, and of one that is not."""
    config, errors = Config(env="CartPole-v1", precision="float32", compile="off"), []
    for differs in (False, True):
        if differs and trainers.rank == 1:
            config.precision = "bfloat16"
        try:
            refuse_unlike(config, "cpu", trainers)
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    return {"alike": errors[0], "error": errors[1]}, {}


def not_a_number(trainers: Trainers) -> Result:
    """One reward of the second trainer's is NaN; what each has to say, and its state then."""
    agent, pool = parts(trainers, small("CartPole-v1", reward_transform="return_std"))
    pool.request(agent.weights(), 0, reset=True)
    rollout = pool.gather()
    pool.close()
    if trainers.rank == 1:
        rollout.reward[3, 0] = np.nan
    try:
        agent.learn(rollout, 0.0)
    except NotFinite as error:
        return {"error": str(error)}, agent.state()[0]
    return {"error": ""}, agent.state()[0]


def summed(trainers: Linked, sizes: list[int]) -> Result:
    """Sums of tensors of these sizes, of both kinds of numbers."""
    sums = {}
    for place, size in enumerate(sizes):
        for kind in (torch.float32, torch.float64):
            generator = torch.Generator().manual_seed(100 * place + trainers.rank)
            tensor = torch.randn(size, generator=generator, dtype=kind)
            trainers.sum(tensor)
            sums[f"{place} {kind}"] = tensor.numpy()
    return {}, sums


def lost(trainers: Linked, reason: str | None, waits_in: str) -> Result:
    """The second trainer ends in the midst of a run; what the first has to say."""
    trainers.everyone({}, {})  # until both are connected
    trainers.sum(torch.zeros(3))
    if trainers.rank == 1:
        if reason is not None:
            trainers.note_stop(reason)
        os._exit(1)
    try:
        while True:
            trainers.everyone({}, {}) if waits_in == "everyone" else trainers.sum(torch.zeros(3))
    except TrainerLost as error:
        return {"error": str(error), "stopped": trainers.stopped()}, {}


def killed(trainers: Linked, rank: int, exchange: int) -> Result:
    """One trainer is killed before an exchange by which they open memory; what another has to say."""
    exchanges = 0

    def gather(message: bytes) -> list[bytes]:
        nonlocal exchanges
        exchanges += 1
        if (trainers.rank, exchanges) == (rank, exchange):
            os.kill(os.getpid(), signal.SIGKILL)
        return trainers._gather_over_gloo(message)

    try:
        CommonMemory(trainers.rank, trainers.size, 100, gather)
    except TrainerLost as error:
        return {"error": str(error)}, {}
    return {"error": ""}, {}


def serve() -> None:
    torch.set_num_threads(1)  # more would spin against the other trainers'
    connection, _ = parent()
    task = json.loads(connection.recv_bytes())
    trainers = Linked(FileStore(task["store"], task["size"]), task["rank"], task["size"])
    connection.send_bytes(wire.pack(*globals()[task["function"]](trainers, *task["arguments"])))


def together(
    size: int, store: Path, function: str, *arguments: Any, machines: int = 1
) -> list[Child]:
    """So many trainers that run a function of this module each, as if on so many machines."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["LOCAL_WORLD_SIZE"] = str(size // machines)
    children = [Child(__name__) for _ in range(size)]
    for rank, child in enumerate(children):
        task = {"store": str(store), "rank": rank, "size": size}
        child.send(json.dumps(task | {"function": function, "arguments": arguments}).encode())
    return children


def results(children: list[Child]) -> list[Result]:
    return [wire.unpack(child.receive(180)) for child in children]
