"""The settings of a run: one dataclass, its presets, its flags and its validation.

Precedence: dataclass default < preset of the env's family < preset of the env < `--config FILE`
< flags. Every field is a flag of its own name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from envs import family_of
from errors import UserError

ROOT = Path(__file__).resolve().parent

# What `--resume` may change: where a run runs and what it shows, never what it computes.
# `train_total_steps` is the one exception, so that a finished run can be continued.
MAY_CHANGE_ON_RESUME = {
    "resume", "train_total_steps", "xparl_addr", "samplers",
    "test_every_steps", "test_share", "test_episodes", "test_max_steps",
}  # fmt: skip


class ConfigError(UserError):
    """A setting that cannot work. The message names the value, the rule and the remedy."""


@dataclass
class Config:
    """Everything that a run depends on."""

    # --- the task
    env: str = "PongNoFrameskip-v4"
    """A gymnasium id, an Atari id (XNoFrameskip-v4 or ALE/X-v5), or module:EnvClass."""
    continuous_action: bool = False
    """Accepted for PARL's sake and checked: an error where the env's actions are discrete."""
    env_num: int = 8
    """Number of environments in all, spread over the samplers."""
    seed: int = 1
    """Seed of the weights, environments, actions and shuffling. 0 is a seed."""
    train_total_steps: int = 1_000_000
    """Environment steps to train for (reset rows are not counted)."""

    # --- where it runs
    xparl_addr: str | None = None
    """IP:PORT of an xparl master; without it samplers are local processes."""
    samplers: int | None = None
    """Sampler processes or remote actors. 0: in the learner's own process. Default: the cores,
    or the cluster's free CPUs; at most env_num."""
    policy_lag: int = 1
    """0: collect, then learn. 1: learn on a fragment while the next one is collected. 2 and more:
    asynchronous; fragments are learned from as they arrive, and dropped if older than this."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the learner; auto takes a GPU where there is one."""
    torch_threads: int = 1
    """CPU threads of the learner. 0: all cores."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the gradient step with torch.compile. auto: where a C++ compiler exists and the
    run is long enough to pay for it."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the learner's trunk; samplers act, and heads are computed, in float32. auto:
    bfloat16 for images where the processor has instructions for it."""

    # --- evaluation
    test_every_steps: int | None = None
    """Steps between evaluations, done by a process of its own. Default: test_share of the run."""
    test_share: float = 0.1
    """Share of the run between evaluations where test_every_steps is not given."""
    test_episodes: int = 10
    """Episodes per evaluation."""
    test_max_steps: int = 27_000
    """Step cap of an evaluation episode (27,000 Atari steps are 30 minutes of play)."""

    # --- files
    run_dir: str | None = None
    """Folder of the run. Default: runs/<env>__s<seed>__<time>."""
    resume: str | None = None
    """Folder of a run to go on with, from its last good checkpoint."""
    config: str | None = None
    """YAML file of settings, between the presets and the flags."""
    checkpoint_share: float = 0.1
    """Share of the run between checkpoints. All environments are reset after each."""

    # --- the networks
    network: Literal["mlp", "nature_cnn"] = "mlp"
    """mlp for vectors, nature_cnn (Mnih et al. 2015) for images."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of an mlp."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Activation of an mlp; nature_cnn has ReLU."""
    shared_trunk: bool = False
    """One trunk for actor and critic, or one for each."""
    distribution: Literal["auto", "normal", "beta", "categorical"] = "auto"
    """The policy's distribution. auto: categorical for discrete actions, normal for continuous."""
    initial_log_std: float = 0.0
    """Log standard deviation that a normal policy begins with (independent of the state)."""
    normalize_observation: bool = False
    """Normalise observations by their running mean and standard deviation."""
    observation_clip: float = 10.0
    """Bound of a normalised observation."""

    # --- rewards, as the learner sees them; logged returns are always raw
    reward_transform: Literal["none", "sign", "return_std"] = "none"
    """sign: -1, 0 or 1 (Atari). return_std: divide by the running standard deviation of the
    discounted return of each environment's stream."""
    reward_clip: float = 10.0
    """Bound of a reward under return_std."""

    # --- PPO (Schulman et al. 2017, arXiv 1707.06347)
    batch_size: int = 2048
    """Steps per update, over all environments."""
    rollout_steps: int | None = None
    """Steps per environment and update. Default: the nearest to batch_size / env_num that
    minibatches divide."""
    minibatch_size: int = 256
    """Steps per gradient step."""
    update_epochs: int = 10
    """Passes over a batch."""
    learning_rate: float = 3e-4
    """Adam's learning rate, at the start."""
    learning_rate_schedule: Literal["constant", "linear", "kl"] = "linear"
    """linear: to 0 over the run. kl: after each update, times or over 1.5 where the measured KL
    leaves [desired_kl / 2, 2 desired_kl]."""
    desired_kl: float = 0.01
    """KL that learning_rate_schedule kl aims at."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of GAE (Schulman et al. 2016, arXiv 1506.02438)."""
    recompute_advantages: bool = False
    """Compute values and advantages anew before every epoch, not only before the first."""
    normalize_advantage: bool = True
    """Normalise advantages to mean 0 and standard deviation 1 in each minibatch."""
    clip_range: float = 0.2
    """Clip of the probability ratio, at the start."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """linear: to 0 over the run."""
    value_coefficient: float = 0.5
    """Weight of the value loss, the mean of (V - R)^2."""
    value_clip: float | None = None
    """Bound of the value's change in an update (PPO2's value clipping). Default: none."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Bound of the gradient's norm."""
    target_kl: float | None = None
    """Stop an update's epochs once the mean approximate KL of one exceeds this. Default: never."""

    def __post_init__(self) -> None:
        self.hidden_sizes = tuple(self.hidden_sizes)

    # --- what follows from the fields
    @property
    def steps_per_rollout(self) -> int:
        """T: rows of a rollout. A whole number of minibatches fits in T * env_num."""
        if self.rollout_steps is not None:
            return self.rollout_steps
        multiple = self.minibatch_size // math.gcd(self.minibatch_size, self.env_num)
        return multiple * max(1, round(self.batch_size / self.env_num / multiple))

    @property
    def steps_per_update(self) -> int:
        return self.steps_per_rollout * self.env_num

    @property
    def updates(self) -> int:
        """Updates in the run, about: the reset rows of ended episodes are not counted as steps."""
        return max(1, math.ceil(self.train_total_steps / self.steps_per_update))

    @property
    def updates_per_checkpoint(self) -> int:
        return max(1, round(self.updates * self.checkpoint_share))

    @property
    def steps_per_evaluation(self) -> int:
        return self.test_every_steps or max(1, round(self.train_total_steps * self.test_share))

    def default_samplers(self, available: int) -> int:
        """As many as `available` processors allow; asynchronous ones share environments evenly."""
        most = min(self.env_num, available)
        if self.policy_lag <= 1:
            return most
        return max(n for n in range(1, most + 1) if self.env_num % n == 0)

    def validate(self) -> None:
        """Check the fields against one another.

        Raises:
            ConfigError: for the first rule that is broken.
        """
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} is {value}, but must be at least {least}")
        for name in ("gamma", "gae_lambda", "test_share", "checkpoint_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}, but must lie between 0 and 1")
        for name in ("test_share", "checkpoint_share", "learning_rate", "clip_range"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be greater than 0")
        if self.policy_lag > 1 and self.samplers == 0:
            raise ConfigError(
                f"policy_lag is {self.policy_lag}, but samplers 0 puts the environments in the"
                f" learner's own process, where nothing overlaps: give --samplers 1 or more"
            )
        if self.policy_lag > 1 and self.samplers and self.env_num % self.samplers:
            raise ConfigError(
                f"policy_lag {self.policy_lag} needs equally many environments in each sampler, but"
                f" {self.samplers} samplers do not divide env_num {self.env_num}: give --samplers"
                f" {self.default_samplers(self.samplers)}, or another --env_num"
            )
        if self.samplers is not None and self.samplers > self.env_num:
            raise ConfigError(
                f"samplers is {self.samplers}, but there are only {self.env_num} environments to"
                f" spread over them: give --samplers {self.env_num} or fewer, or a larger --env_num"
            )
        if self.batch_size % self.minibatch_size and self.rollout_steps is None:
            raise ConfigError(
                f"minibatch_size {self.minibatch_size} does not divide batch_size {self.batch_size}:"
                f" give a divisor, or --batch_size"
                f" {self.minibatch_size * max(1, round(self.batch_size / self.minibatch_size))}"
            )
        if self.steps_per_update % self.minibatch_size:
            raise ConfigError(
                f"minibatch_size {self.minibatch_size} does not divide the batch of rollout_steps"
                f" {self.rollout_steps} x env_num {self.env_num} = {self.steps_per_update} steps:"
                f" give a divisor, or leave --rollout_steps out"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as YAML and JSON can hold them."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


_AT_LEAST = {
    "env_num": 1, "seed": 0, "train_total_steps": 1, "samplers": 0, "policy_lag": 0,
    "torch_threads": 0, "test_every_steps": 1, "test_episodes": 1, "test_max_steps": 1,
    "batch_size": 1, "rollout_steps": 1, "minibatch_size": 1, "update_epochs": 1,
    "entropy_coefficient": 0, "value_coefficient": 0, "max_grad_norm": 0, "target_kl": 0,
    "reward_clip": 0, "observation_clip": 0, "value_clip": 0, "adam_eps": 0,
}  # fmt: skip

FIELDS = {field.name for field in dataclasses.fields(Config)}


def parse(arguments: Sequence[str], program: str = "train.py") -> Config:
    """Build the configuration that a command line asks for.

    Args:
        arguments: the flags, without the program's name.

    Raises:
        ConfigError, UnknownEnv: for a value that breaks a rule.
        SystemExit: 2 for a flag that does not exist or does not parse; 0 after --help.
    """
    import tyro

    resume = _value_of("--resume", arguments)
    if resume is not None:
        base = load_run(Path(resume))
    else:
        env = _value_of("--env", arguments) or Config.env
        base = preset(env)
        settings = _value_of("--config", arguments)
        if settings is not None:
            base = dataclasses.replace(base, **_read_settings(Path(settings)))
            if base.env != env and _value_of("--env", arguments) is None:
                base = dataclasses.replace(preset(base.env), **_read_settings(Path(settings)))
    config = tyro.cli(
        Config,
        prog=program,
        description="Train an agent with distributed PPO.",
        args=list(arguments),
        default=base,
    )
    if resume is not None:
        _refuse_contradictions(base, config)
        config.run_dir = resume
    config.validate()
    return config


def preset(env: str) -> Config:
    """The defaults for an env: those of its family, then its own (`presets/<family>.yaml`)."""
    family = family_of(env)
    settings: dict[str, Any] = {"env": env}
    path = ROOT / "presets" / f"{family}.yaml"
    if path.exists():
        content = yaml.safe_load(path.read_text())
        settings |= content["family"]
        settings |= content.get("tasks", {}).get(env.rpartition("/")[2], {})
    return Config(**settings)


def load_run(folder: Path) -> Config:
    """The configuration that a run was started with."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run (it has no config.yaml): give one that train.py"
            f" wrote, such as runs/CartPole-v1__s1__20260101-120000"
        )
    return Config(**_read_settings(path))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from None
    settings = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings: write one `name: value` a line")
    unknown = sorted(set(settings) - FIELDS)
    if unknown:
        raise ConfigError(f"{path} sets {', '.join(unknown)}: no such setting, see --help")
    return settings


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that decides which defaults the others have."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else (arguments[at + 1] if at + 1 < len(arguments) else None)
    return None


def _refuse_contradictions(saved: Config, asked: Config) -> None:
    for name in sorted(FIELDS - MAY_CHANGE_ON_RESUME):
        before, now = getattr(saved, name), getattr(asked, name)
        if before != now and not (name == "run_dir" and now == asked.resume):
            raise ConfigError(
                f"--{name} {now} contradicts the run in {asked.resume}, which has {name} {before}:"
                f" leave the flag out, or start a new run"
            )
