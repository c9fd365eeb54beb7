"""The states of scalar environments and of their generators, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from envs.convention import BadEnvironment

_WORD = 2**64


class ScalarState(NamedTuple):
    """How an environment's state is read and written, except for its generator and its time limit.

    `read` returns numeric arrays by name, whose shapes are always the same.
    """

    read: Callable[[Any], dict[str, np.ndarray]]
    write: Callable[[Any, dict[str, np.ndarray]], None]


def generator_words(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, as gymnasium's are, as [6] uint64.

    Raises:
        BadEnvironment: for another one, which an environment of the user's own may have.
    """
    whole: Any = generator.bit_generator.state
    if whole["bit_generator"] != "PCG64":
        raise BadEnvironment(
            f"np_random is a generator of {whole['bit_generator']}, whose state cannot be saved: let"
            f" super().reset(seed=seed) make it, or rename get_state for no state to be saved"
        )
    words = [
        *divmod(whole["state"]["state"], _WORD), *divmod(whole["state"]["inc"], _WORD),
        whole["has_uint32"], whole["uinteger"],
    ]  # fmt: skip
    return np.array(words, np.uint64)


def generator_of(words: np.ndarray) -> np.random.Generator:
    """A generator in the state that `generator_words` returned."""
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high * _WORD + low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)


def stacked(rows: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of N environments, one dictionary each, as arrays whose first axis is N.

    Raises:
        BadEnvironment: where they have other names or shapes.
    """
    listed = list(rows)
    forms = [{name: array.shape for name, array in row.items()} for row in listed]
    for form in forms:
        if form != forms[0]:
            raise BadEnvironment(
                f"get_state returns {_in_words(forms[0])} in one environment and {_in_words(form)} in"
                f" another, but must always return the same names and shapes"
            )
    return {name: np.stack([row[name] for row in listed]) for name in listed[0]}


def _in_words(form: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(form.items())) or "nothing"


# --- gymnasium's classic control: `state`, and what CartPole counts after an episode's end


def _read_classic(env: Any) -> dict[str, np.ndarray]:
    state = np.asarray(env.state)
    beyond = getattr(env, "steps_beyond_terminated", None)
    return {
        "state": state.astype(np.float64),
        # some keep float32 after a reset and float64 after a step, or the other way round
        "is_float32": np.asarray(state.dtype == np.float32),
        "beyond": np.asarray(-1 if beyond is None else beyond),
    }


def _write_classic(env: Any, row: dict[str, np.ndarray]) -> None:
    env.state = row["state"].astype(np.float32 if row["is_float32"] else np.float64)
    if hasattr(env, "steps_beyond_terminated"):
        env.steps_beyond_terminated = None if row["beyond"] < 0 else int(row["beyond"])


CLASSIC = ScalarState(_read_classic, _write_classic)


# --- a class of the user's own that has `get_state` and `set_state`, of numeric arrays by name


def _read_own(env: Any) -> dict[str, np.ndarray]:
    saved = env.get_state()
    if not isinstance(saved, dict):
        raise _not_saved(env, f"a {type(saved).__name__}")
    arrays = {name: np.asarray(value) for name, value in saved.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # no long doubles
            raise _not_saved(env, f"{name!r} of dtype {array.dtype}")
    return arrays


def _not_saved(env: Any, wrong: str) -> BadEnvironment:
    return BadEnvironment(
        f"get_state of {type(env).__name__} returns {wrong}, but must return a dictionary of"
        f" numeric arrays by name: mend it, or rename it for its state not to be saved"
    )


OWN = ScalarState(_read_own, lambda env, row: env.set_state(row))


def own_state(env: gymnasium.Env) -> ScalarState | None:
    """How the user's own environment saves its state, or None where it does not."""
    both = all(callable(getattr(env, name, None)) for name in ("get_state", "set_state"))
    return OWN if both else None
