"""Where a run's settings come from: presets, a file, the command line.

Precedence: dataclass default < preset of the env's family < preset of the env < `--preset NAME`
< what `--store` needs < the network of `--initial_weights` < `--config FILE` < flags. Every field of `Config` is a flag of its own name.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common import launched
from common.sources import ROOT
from common.terminal import allow_short_help
from common.values import convert
from envs import family_of, known_ids
from settings.completion import COMPLETION, print_completion
from settings.config import (
    FIELDS,
    HINTS,
    MAY_CHANGE_ON_RESUME,
    OF_LEARNING,
    OF_WEIGHTS,
    Config,
    ConfigError,
)  # fmt: skip
from settings.dry_run import DRY_RUN, print_settings
from settings.fitting import fitted
from settings.flags import read_flags, unknown
from settings.help import print_help
from settings.layers import Layer, merged
from settings.rules import validate
from settings.size_rules import validate_sizes
from settings.stored_run import refuse_the_runs_own, store_defaults
from settings.trust import CODE, refuse_strangers_code
from settings.yaml_files import load_yaml, read_yaml

_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
# distributions that only one kind of action has: auto takes the one that fits
_BY_KIND = {"auto", "normal", "categorical"}


def parse(arguments: Sequence[str], program: str = "train.py") -> Config:
    """Build the configuration that a command line asks for.

    Args:
        arguments: the flags, without the program's name.

    Raises:
        ConfigError, UnknownEnv: for a flag that does not exist, or a value that breaks a rule.
        SystemExit: 0 after --help, --dry_run or --completion.
    """
    arguments = [DRY_RUN if word == "--dry-run" else word for word in arguments]
    asks_for_help = allow_short_help(arguments)
    if any(word.partition("=")[0] == COMPLETION for word in arguments):
        words = [part for word in arguments for part in word.split("=")]
        shell = " ".join(word for word in words if word != COMPLETION)
        print_completion(shell, {"env": known_ids(), "preset": recipes()})
    words = [word for word in arguments if word not in ("-h", "--help", DRY_RUN)]
    flags = read_flags(words)
    if flags.get("join") is not None:
        refuse_the_runs_own(flags)
    path, given, layers = flags.get("config"), flags, []
    if flags.get("resume") is not None:
        config = _resumed(flags)
        refuse_strangers_code(config, Path(flags["resume"]), flags)
        layers = [Layer(f"the run in {flags['resume']}", config.to_dict())]
    else:
        in_file = _in_file(flags)
        given = in_file | flags
        layers = preset_layers(given.get("env", Config.env), given.get("preset"))
        if given.get("store") is not None:
            layers.append(Layer("store", store_defaults(merged(layers), given)))
        if given.get("initial_weights") is not None:
            layers.append(_network_layer(Path(given["initial_weights"]), given))
        config = dataclasses.replace(merged(layers), **given)
        layers.append(Layer(str(path), in_file))
        if path is not None:
            refuse_strangers_code(config, Path(path), flags.keys() | (set(CODE) - in_file.keys()))
    layers.append(Layer("flag", flags))
    if asks_for_help:
        print_help(program, *((config, layers) if flags else (Config(), ())))
    config.trainers = _trainers(config, given.get("trainers"))
    if config.trainer_mode == "hogwild" and launched.world() and launched.memory() is None:
        raise ConfigError(
            "trainer_mode is hogwild, but trainers that torchrun starts have no memory in common:"
            " give --trainers instead of torchrun, or --trainer_mode synchronous"
        )
    if config.store is not None and launched.world():
        raise ConfigError(
            f"store is {config.store}, but trainers that torchrun starts sum their gradients: give"
            f" --trainers, or one command for each trainer (and unset RANK)"
        )
    validate(config)
    if config.resume is None:
        config = fitted(config, given)
    validate_sizes(config)
    if DRY_RUN in arguments:
        print_settings(config, layers)
    return config


def parse_again(arguments: Sequence[str], run_dir: str | None = None) -> Config:
    """The same for a trainer that a launcher has started, or started anew: then the run goes on.

    Args:
        run_dir: of the run, where another process has begun it in this one's place.

    Raises:
        ConfigError: also where a run that is started anew could not be found.
    """
    if launched.restarts():  # what a run needs to begin may be gone by now
        flags = read_flags(arguments)
        if flags.get("resume") is None:
            named = flags.get("run_dir") or _in_file(flags).get("run_dir")
            # a folder of another run was refused, and is not what is started anew
            begun = run_dir or (named if named and _begun_by(Path(named), arguments) else None)
            if begun is not None:
                return parse(["--resume", begun])
    config = parse(arguments)
    if config.run_dir is None and launched.may_restart():
        raise ConfigError(
            "run_dir is not given, but torchrun may start the trainers anew (--max_restarts), and they"
            " have to find the run: give --run_dir"
        )
    return config


def _network_layer(folder: Path, given: Mapping[str, Any]) -> Layer:
    """The settings of the network whose weights a new run begins with.

    Args:
        given: the settings that the user has given. Its network is code that nobody has to trust where it
            is one of them.
    """
    begun = load_run(folder)
    # a deviation that the network puts out is added to it, so there it is no initial value
    names = OF_WEIGHTS | ({"initial_log_std"} if begun.state_dependent_std else set())
    network = {name: getattr(begun, name) for name in sorted(names)}
    for name in sorted(network.keys() & given.keys()):
        by_kind = name == "distribution" and {given[name], network[name]} <= _BY_KIND
        if given[name] != network[name] and not by_kind:
            raise ConfigError(
                f"{name} is {given[name]}, but the weights in {folder} were trained with"
                f" {network[name]}: leave {name} or initial_weights out"
            )
    begun.trust = given.get("trust", False)
    refuse_strangers_code(begun, folder, {"env", *given})  # its environment is not imported
    return Layer(f"the network in {folder}", network)


def _trainers(config: Config, given: int | None) -> int:
    """How many trainers there are: as many as were started, where a launcher has done it."""
    started = launched.world()
    if started is None:
        return config.trainers
    if given not in (None, started):
        raise ConfigError(
            f"trainers is {given}, but {started} were started together (WORLD_SIZE): leave"
            f" --trainers out, or give torchrun another --nproc_per_node"
        )
    return started


def preset(env: str, recipe: str | None = None) -> Config:
    """The defaults for an env: those of its family, then its own (`presets/<family>.yaml`).

    Args:
        recipe: one of `presets/recipes/`, over all but what they say of learning.

    Raises:
        ConfigError: where there is no such recipe, or it says nothing of this family.
    """
    return merged(preset_layers(env, recipe))


def preset_layers(env: str, recipe: str | None) -> list[Layer]:
    """What `preset` is made of, from the lowest layer to the highest."""
    family = family_of(env)
    layers = [Layer("", {"env": env})]
    path = ROOT / "presets" / f"{family}.yaml"
    if path.exists():
        content = yaml.safe_load(path.read_text())
        name, task = f"presets/{path.name}", env.rpartition("/")[2]
        layers.append(Layer(f"{name}, family", content["family"]))
        layers.append(Layer(f"{name}, {task}", content.get("tasks", {}).get(task, {})))
    if recipe is not None:
        content = {"preset": recipe} | _read_recipe(recipe, env, family)
        for _, values in layers:
            for name in OF_LEARNING & values.keys():
                del values[name]
        layers.append(Layer(f"presets/recipes/{recipe}.yaml", content))
    return layers


def recipes() -> list[str]:
    """The names that `--preset` takes."""
    return sorted(path.stem for path in (ROOT / "presets" / "recipes").glob("*.yaml"))


def _read_recipe(name: str, env: str, family: str) -> dict[str, Any]:
    if name not in recipes():
        raise ConfigError(f"preset {name!r} does not exist: give one of {', '.join(recipes())}")
    content = yaml.safe_load((ROOT / "presets" / "recipes" / f"{name}.yaml").read_text())
    if "any" in content:
        return content["any"]
    if family not in content:
        raise ConfigError(
            f"preset {name} is for {' and '.join(content)}, but env {env} is {family}: leave it out,"
            f" or give another --env"
        )
    return content[family]


def load_run(folder: Path) -> Config:
    """The configuration that a run was started with, and what resumes have changed since.

    A setting that the run's version of the project did not have yet is at the dataclass's default,
    which stands for how it was before; one that this version no longer has is named on stderr.
    """
    path = folder / "config.yaml"
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno not in _NO_SUCH_FILE:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        is_file = False
    if not is_file:
        raise ConfigError(
            f"{folder} is not the folder of a run (it has no config.yaml): give one that train.py"
            f" wrote, such as runs/CartPole-v1__s1__20260101-120000"
        )
    settings = read_yaml(path)
    resumes = folder / "resumes.yaml"
    if resumes.exists():
        settings |= _changes(resumes)
    unknown = sorted(set(settings) - FIELDS)
    if unknown:
        _warn_once(f"{path}: this version has no {', '.join(unknown)}: left out")
    return Config(**_converted({n: v for n, v in settings.items() if n in FIELDS}, path))


def _begun_by(folder: Path, arguments: Sequence[str]) -> bool:
    """Whether a folder has a run that a command with these arguments has begun."""
    path = folder / "config.yaml"
    command = load_yaml(path)["command"] if is_run_config(path) else None
    return isinstance(command, list) and command[1:] == list(arguments)


def is_run_config(path: Path) -> bool:
    """Whether a file is the config.yaml of a run, as train.py writes it."""
    try:
        content = load_yaml(path)
    except ConfigError:
        return False
    return isinstance(content, dict) and {"config", "versions", "command"} <= content.keys()


def _changes(resumes: Path) -> dict[str, Any]:
    """The settings that the resumes of a run have changed."""
    content, changes = load_yaml(resumes), {}
    for resume in content if isinstance(content, list) else [content]:
        changed = resume.get("config") if isinstance(resume, dict) else None
        if not isinstance(changed, dict):
            raise ConfigError(
                f"{resumes} is no list of resumes, each with its config: put back the file that"
                f" train.py wrote, or remove it to resume with the settings of config.yaml"
            )
        changes |= {str(name): value for name, value in changed.items()}
    changes.pop("trust", None)
    return changes


@cache
def _warn_once(line: str) -> None:
    """A command may read the same file several times."""
    print(line, file=sys.stderr)


def _in_file(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the file that `--config` names, which the user wrote."""
    if flags.get("config") is None:
        return {}
    path = Path(flags["config"])
    settings = read_yaml(path)
    for name in sorted(set(settings) - FIELDS):
        raise ConfigError(f"{path}: {unknown(name, name)}")
    for name in ("resume", "join"):
        if settings.get(name) is not None:
            raise ConfigError(
                f"{path}: {name} is no setting of a file, as the settings are those of the run then: give"
                f" --{name} {settings[name]} instead of --config"
            )
    return _converted(settings, path)


def _converted(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values that a file holds, as the settings' types."""
    converted = {}
    for name, value in settings.items():
        try:
            converted[name] = convert(HINTS[name], value)
        except ValueError as rule:
            raise ConfigError(f"{path}: {name} is {value!r}, but must be {rule}") from None
    return converted


def _resumed(flags: dict[str, Any]) -> Config:
    """The configuration of the run that --resume names, with the flags that it may change by."""
    folder = flags["resume"]
    saved = load_run(Path(folder))
    for name, value in sorted(flags.items()):
        before = getattr(saved, name)
        own_folder = name == "run_dir" and value == folder
        if value != before and name not in MAY_CHANGE_ON_RESUME and not own_folder:
            raise ConfigError(
                f"--{name} {value} contradicts the run in {folder}, which has {name} {before}:"
                f" leave the flag out, or start a new run"
            )
    steps = flags.get("train_total_steps", saved.train_total_steps)
    if steps < saved.train_total_steps:
        raise ConfigError(
            f"train_total_steps {steps} is less than the {saved.train_total_steps} of the run in"
            f" {folder}: it may be raised, to train on; --max_minutes ends a run earlier"
        )
    return dataclasses.replace(saved, **flags | {"run_dir": folder})


def defaults(config: Config) -> Config:
    """The settings that a run would have if only its env and its recipe, or its run, were given."""
    if config.resume is not None:
        return load_run(Path(config.resume))
    return preset(config.env, config.preset)
