"""Which settings a sweep tries: a grid, random draws, or what Optuna suggests."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.values import plain_type
from settings.config import HINTS, ConfigError
from settings.flags import read_flags

_EXAMPLE = "such as learning_rate=1e-4..1e-3:log or update_epochs=4,10"
_RANDOM_FIRST = 5  # trials before Optuna has something to go by


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included; `log`: each factor is as probable as another."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, generator: np.random.Generator) -> str:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        half = 0.5 if self.whole and not self.log else 0.0  # so that the ends are as probable
        drawn = generator.uniform(low - half, high + half)
        return self.word(math.exp(drawn) if self.log else drawn)

    def word(self, number: float) -> str:
        """A number of the range as a flag's word, with four digits."""
        rounded = round(number) if self.whole else float(f"{number:.4g}")
        return str(min(max(rounded, self.low), self.high))


Space = Mapping[str, "Range | tuple[str, ...]"]  # setting -> its values
Settings = dict[str, str]  # setting -> its value, as words of a command line


def flags_of(settings: Settings) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", *value.split())]


def read_space(varied: Sequence[str]) -> Space:
    """What `--vary` names: NAME=VALUE,VALUE..., NAME=LOW..HIGH or NAME=LOW..HIGH:log.

    Raises:
        ConfigError: for a setting or a value that train.py would refuse, or another form.
    """
    space: dict[str, Range | tuple[str, ...]] = {}
    for text in varied:
        name, equals, values = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not values:
            raise ConfigError(
                f"vary {text} is neither NAME=VALUE,VALUE nor NAME=LOW..HIGH, {_EXAMPLE}"
            )
        if name in space:
            raise ConfigError(f"vary names {name} twice: give all of its values at once")
        if ".." in values and "/" not in values:  # ../ is a folder
            space[name] = _read_range(name, values)
        else:
            words = tuple(dict.fromkeys(values.split(",")))
            for word in words:
                read_flags(flags_of({name: word}))
            space[name] = words
    return space


def _read_range(name: str, text: str) -> Range:
    ends, _, scale = text.partition(":")
    words = ends.split("..")
    low, high = (read_flags(flags_of({name: word}))[name] for word in (words[0], words[-1]))
    kind = plain_type(HINTS[name])
    if kind not in (int, float) or None in (low, high):
        rule = "both ends must be numbers"
    elif scale not in ("", "log"):
        rule = f"log is the only scale, not {scale}"
    elif len(words) > 2 or not low < high or (scale and low <= 0):
        rule = "it must have 0 < LOW < HIGH" if scale else "it must have LOW < HIGH"
    else:
        return Range(low, high, bool(scale), kind is int)
    raise ConfigError(f"vary {name}={text} is a range, but {rule}, {_EXAMPLE}")


def grid(space: Space) -> list[Settings]:
    """All combinations of the values.

    Raises:
        ConfigError: where one of them is a range.
    """
    listed: list[tuple[str, ...]] = []
    for name, values in space.items():
        if isinstance(values, Range):
            raise ConfigError(
                f"vary {name}={values.low}..{values.high} is a range, but a grid needs single values:"
                f" give NAME=VALUE,VALUE, or --search random"
            )
        listed.append(values)
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*listed)]


def draws(space: Space, trials: int) -> list[Settings]:
    """Random settings, of which the first ones stay the same where more are asked for.

    Where no setting has a range, no combination comes twice, so they may be fewer.
    """
    if not any(isinstance(values, Range) for values in space.values()):
        listed = grid(space)
        return [listed[i] for i in np.random.default_rng(0).permutation(len(listed))[:trials]]
    return [_draw(space, np.random.default_rng([0, trial])) for trial in range(trials)]


def _draw(space: Space, generator: np.random.Generator) -> Settings:
    return {
        name: values.draw(generator)
        if isinstance(values, Range)
        else values[generator.integers(len(values))]
        for name, values in space.items()
    }


def first(space: Space) -> Settings:
    """One choice of settings: the first value of each, or its range's low end."""
    return {
        name: values.word(values.low) if isinstance(values, Range) else values[0]
        for name, values in space.items()
    }


class Listed:
    """Trials that are known beforehand.

    `trials`: how many there are. `known`: settings that can be checked before the first one.
    """

    def __init__(self, settings: Sequence[Settings]):
        self.trials, self.known = len(settings), settings

    def settings(self, trial: int) -> Settings:
        """What a trial is to try; they are asked for in turn."""
        return self.known[trial]

    def tell(self, trial: int, score: float | None) -> None:
        """What a trial has reached; None: it has failed."""


class Suggested:
    """Trials that Optuna's TPE suggests (Bergstra et al. 2011), by the scores of those before.

    Args:
        folder: keeps what was suggested, so that an interrupted sweep goes on with it.

    Raises:
        ConfigError: where Optuna is not installed.
    """

    def __init__(self, space: Space, trials: int, folder: Path):
        try:
            import optuna  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ConfigError("search optuna needs the package optuna: run `make optuna`") from None
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.trials, self._space, self._folder = trials, space, folder
        self.known = [first(space)]
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, Any] = {}

    def settings(self, trial: int) -> Settings:
        path = self._folder / f"t{trial:02d}.json"
        if path.exists():
            self._study.enqueue_trial(json.loads(path.read_text()))
        # a seed for each, so that a sweep that goes on does not repeat its first draws
        self._study.sampler = self._optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_FIRST, seed=trial
        )
        asked = self._study.ask(self._distributions())
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asked.params) + "\n")
        part.replace(path)
        self._asked[trial] = asked
        return {
            name: values.word(asked.params[name])
            if isinstance(values, Range)
            else asked.params[name]
            for name, values in self._space.items()
        }

    def tell(self, trial: int, score: float | None) -> None:
        failed = self._optuna.trial.TrialState.FAIL
        self._study.tell(self._asked[trial], score, None if score is not None else failed)

    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        return {
            name: kinds.CategoricalDistribution(values)
            if not isinstance(values, Range)
            else kinds.IntDistribution(int(values.low), int(values.high), values.log)
            if values.whole
            else kinds.FloatDistribution(values.low, values.high, values.log)
            for name, values in self._space.items()
        }
