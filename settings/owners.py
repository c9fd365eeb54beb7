"""The settings of where and how long a run computes, and what it leaves, in one dataclass for each owner.

A field's annotation has its type, its bounds and the settings without which it has no effect
(`common.values`); its docstring is its help. So a new setting is written here, or in `settings.learning`, in
one place. A family of environments owns its settings itself (`envs.FamilyOptions`). `settings.config` puts
them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from common.values import (
    OFF,
    ON,
    Count,
    FileName,
    FolderName,
    Natural,
    Needs,
    NotNegative,
    Positive,
    PositiveShare,
)


@dataclass
class Task:
    """The environment, and how a run begins."""

    env: str = "PongNoFrameskip-v4"
    """A gymnasium id, an Atari id (XNoFrameskip-v4 or ALE/X-v5), or module:EnvClass."""
    continuous_action: bool = False
    """Say that actions are continuous, as PARL's PPO asks for it. It is an error where they are
    discrete, and changes nothing else."""
    env_num: Count = 8
    """Number of environments in all, spread over the samplers."""
    seed: Natural = 1
    """Seed of the weights, environments, actions and shuffling. 0 is a seed."""
    preset: str | None = None
    """A published recipe by name (presets/recipes/), instead of the environment's own settings of
    learning."""
    initial_weights: FolderName | None = None
    """Folder of a run, or of pretrained/, with whose newest weights and network the run begins; all
    else begins anew. Default: random weights."""


@dataclass
class Length:
    """When a run is over."""

    train_total_steps: Count = 1_000_000
    """Environment steps to train for (reset rows are not counted)."""
    max_minutes: NotNegative | None = None
    """Stop after this time [minutes], with everything saved. Of a resumed run all parts count."""
    solve_score: float | None = None
    """Stop once the mean return of an evaluation, or of the last 100 training episodes, reaches this."""


@dataclass
class Cluster:
    """Where the environments are stepped."""

    xparl_addr: str | None = None
    """IP:PORT of an xparl master; without it samplers are local processes."""
    key: Annotated[FileName | None, Needs(xparl_addr=ON)] = None
    """File with the cluster's key, made by `xparl keygen`. Default: DPPO_KEY_FILE, or your own key in
    ~/.config/dppo, which is enough for a cluster on this machine."""
    ray_address: str | None = None
    """HOST:PORT of a Ray cluster's head node, or auto: the one on this machine."""
    samplers: Natural | None = None
    """Sampler processes or remote actors. 0: in the learner's own process, or, with a store, none but
    those that others start. Default: the cores, or the cluster's free CPUs; at most env_num."""
    sampler_timeout: Positive = 60.0
    """A sampler that makes no step for so long [s] is lost: it is ended, and replaced."""
    wait_for_cpus: Annotated[NotNegative | None, Needs(xparl_addr=ON, ray_address=ON)] = None
    """Give `samplers` too. Where the cluster has fewer free CPUs, begin with those that are there after
    so long [s]; the other samplers join as `xparl connect`, or `ray start --address`, brings CPUs.
    Default: an error."""
    master_timeout: Annotated[Positive, Needs(xparl_addr=ON, ray_address=ON)] = 60.0
    """Where the xparl master, or the Ray cluster, cannot be reached for so long [s], the run ends with
    a checkpoint and exit code 75. Until then samplers that live go on, and the others wait for it."""
    on_loss: Annotated[Literal["go_on", "collect_again"], Needs(policy_lag=(0, 1))] = "go_on"
    """Where a sampler is lost: learn from the others' parts of the fragment, or wait until its
    replacement has collected its part again."""
    straggler_share: Annotated[PositiveShare | None, Needs(policy_lag=(0, 1))] = None
    """Close a fragment once this share of the samplers has given its part (Wijmans et al. 2020,
    arXiv 1911.00357, where it is 0.6); the others' is left out. Default: wait for all."""
    nan: Literal["go_on", "stop"] = "go_on"
    """On NaN or infinity: refuse the sampler's part of the fragment, or the update, and go on, or
    end the run. The weights never hold one."""


@dataclass
class Store:
    """The sample store, through which samplers and any number of trainers share a run."""

    store: str | None = None
    """redis://[USER[:PASSWORD]@]HOST:PORT/DB of a Redis-compatible server (rediss:// with TLS), or
    embedded: one that this run starts and ends. The password is better in DPPO_REDIS_PASSWORD."""
    join: str | None = None
    """Be one more trainer of the run with this id, which has the store's settings."""
    store_timeout: Annotated[Positive, Needs(store=ON)] = 60.0
    """Where the store cannot be reached for so long [s], the run ends with exit code 75. Until then
    everybody waits for it."""
    store_fragments: Annotated[Count | None, Needs(store=ON)] = None
    """Fragments that wait in the store for a trainer at most; then samplers wait. Default: those of one
    update."""
    store_bytes: Annotated[Count, Needs(store=ON)] = 2**30
    """Bytes of fragments that the store holds at most."""
    store_compression: Annotated[Literal["auto", "none", "zstd"], Needs(store=ON)] = "auto"
    """Compress fragments. auto: where observations are bytes, such as images, of which little is left;
    zstd is for networks slower than some 300 MB/s."""


@dataclass
class Machine:
    """How the learner computes."""

    trainers: Count = 1
    """Processes that learn together, each from its share of the environments; env_num, samplers and
    the sizes of batches are those of all. Default: 1, or as many as torchrun has started."""
    trainer_mode: Literal["synchronous", "hogwild"] = "synchronous"
    """synchronous: each gradient step is that of all trainers. hogwild: each trainer takes its own
    steps on one model in shared memory, without waiting for the others; minibatch_size is then the
    size of each trainer's."""
    hogwild_moments: Annotated[Literal["private", "shared"], Needs(trainer_mode="hogwild")] = (
        "private"
    )
    """Whether each trainer has its own moments of Adam, or all have them in common."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the learner; auto takes a GPU where there is one. Each trainer has its own GPU;
    hogwild trainers may share one."""
    torch_threads: Natural | None = None
    """CPU threads of each trainer. 0: all cores, shared by the machine's trainers. Default: 2 for one
    trainer at policy_lag 0, where a network of vectors is compiled and minibatches have 256 rows and
    more; else 1. A sampler always has one."""
    compile: Literal["auto", "on", "off", "beside"] = "auto"
    """Compile the gradient step with torch.compile. auto: where a C++ compiler exists and the
    run is long enough to pay for it, which takes some 20 s the first time. beside: the same, but the
    run learns eagerly while another process compiles; such a run cannot be repeated to the bit. On a
    GPU beside is as auto."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the trunk while learning, and in samplers of nature_cnn and impala; all else is
    float32. auto: bfloat16 for images and maps where the processor has instructions for it."""


@dataclass
class Evaluation:
    """How a run is measured."""

    test_every_steps: Count | None = None
    """Steps between evaluations, done by a process of its own. Default: test_share of the run."""
    test_share: Annotated[PositiveShare, Needs(test_every_steps=OFF)] = 0.1
    """Share of the run between evaluations where test_every_steps is not given."""
    test_episodes: Count = 10
    """Episodes per evaluation."""
    test_max_steps: Count = 27_000
    """Step cap of an evaluation episode (27,000 Atari steps are 30 minutes of play). An episode
    that is cut off counts with its return so far. Where it is not given, microRTS takes max_steps if
    that is more."""


@dataclass
class Files:
    """Where a run comes from, and what it leaves."""

    run_dir: FileName | None = None
    """Folder of the run. Default: runs/<env>__s<seed>__<time>."""
    resume: FileName | None = None
    """Folder of a run to go on with, from its last good checkpoint."""
    config: FileName | None = None
    """YAML file of settings, between the presets and the flags."""
    trust: bool = False
    """Import the module of a class, module:Class, that a file of settings or the folder of somebody
    else's run names."""
    checkpoint_share: PositiveShare = 0.1
    """Share of the run between checkpoints."""
    checkpoint_minutes: Positive = 10.0
    """Longest time between checkpoints [minutes], beside checkpoint_share."""
    track: tuple[Literal["visualdl", "tensorboard", "wandb", "none"], ...] = ("visualdl",)
    """Where the metrics can be looked at while the run trains, beside the terminal and metrics.jsonl:
    one or more of visualdl, tensorboard and wandb (after `make track`), or none."""
    film: bool = False
    """At the end, film an episode of the best policy into best.mp4 in the run's folder, and show it
    where the metrics are."""
