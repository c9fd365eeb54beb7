"""gymnasium's scalar environments, stepped in one process behind the convention."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv, sync_vector_env

from envs.convention import BadEnvironment, Environments, UnsupportedEnv
from envs.state import ScalarState, generator_of, generator_words, own_state, stacked

CRITIC = "critic"  # the part of an observation that is the critic's alone, by default


def comes_from(env: str, package: str) -> bool:
    """Whether gymnasium's registry has this id, for a class of this package of modules."""
    spec = gymnasium.registry.get(env)
    return spec is not None and str(spec.entry_point).startswith(package)


def quiet_make(env: str, **options: Any) -> gymnasium.Env:
    """`gymnasium.make` without its checker (a cost per step) and without deprecation notices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(env, disable_env_checker=True, **options)


def render_options(filmed: bool) -> dict[str, Any]:
    """The options that make a gymnasium environment one that can be filmed."""
    return {"render_mode": "rgb_array"} if filmed else {}


def vectorize(
    name: str,
    make_one: Callable[[], gymnasium.Env],
    num_envs: int,
    critic_obs: str = CRITIC,
    state_of: Callable[[gymnasium.Env], ScalarState | None] | None = None,
) -> ScalarEnvs:
    """Step `num_envs` scalar environments as one, with spaces that a policy can be built for.

    Args:
        name: for messages.
        state_of: how the state of an environment is saved; None: it cannot be.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ScalarEnvs(
            name, [lambda: plain_spaces(name, make_one(), critic_obs)] * num_envs, state_of
        )


_OWN = "own/"


class ScalarEnvs(Environments, SyncVectorEnv):
    """Scalar environments that are stepped one after another.

    gymnasium merges their infos, key by key for each environment and step, which costs much. Nobody
    reads infos here, so they are left out.
    """

    def __init__(
        self,
        name: str,
        makers: list[Callable[[], gymnasium.Env]],
        state_of: Callable[[gymnasium.Env], ScalarState | None] | None,
    ):
        SyncVectorEnv.__init__(self, makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self._name = name
        # the environments below the wrappers that have no state but TimeLimit's counter
        self._inner = [_below_wrappers(env) for env in self.envs]
        limits = [_time_limits(env) for env in self.envs]
        self._limits = [next(iter(found), None) for found in limits]
        self._state = None if state_of is None or len(limits[0]) > 1 else state_of(self._inner[0])
        self.saves_state = self._state is not None
        spec = self.envs[0].spec
        self.episode_limit = None if spec is None else spec.max_episode_steps
        parts = [env for env in self.envs if isinstance(env, Parts)]
        if parts:
            self.privileged = parts[0].privileged
        if parts and parts[0].mask_size:
            self.action_mask = np.ones((len(parts), parts[0].mask_size), bool)
            for part, row in zip(parts, self.action_mask, strict=True):
                part.action_mask = row

    def _add_info(self, vector_infos: dict[str, Any], env_info: Any, env_num: int) -> dict:
        return vector_infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Whatever one raises then is said, and changes nothing."""
        for env in self.envs:
            try:
                env.close()
            except Exception as error:  # a class of the user's own may raise anything
                print(f"env {self._name} could not be closed: {error!r}", file=sys.stderr)

    def picture(self) -> np.ndarray:
        try:
            image: Any = self.envs[0].render()
        except Exception as error:  # a renderer may raise anything
            raise not_drawn(self._name, repr(error)) from None
        if not isinstance(image, np.ndarray):
            raise not_drawn(self._name, f"its render() returns a {type(image).__name__}")
        return image

    def get_state(self) -> dict[str, np.ndarray]:
        if self._state is None or not self.saves_state:
            return super().get_state()
        # the environment's own names, apart from ours
        own = stacked(self._state.read(env) for env in self._inner)
        arrays = {f"{_OWN}{name}": array for name, array in own.items()}
        arrays["generator"] = np.stack([generator_words(env.np_random) for env in self._inner])
        arrays["elapsed"] = np.array(
            [0 if limit is None else limit._elapsed_steps for limit in self._limits], np.int64
        )
        arrays["ended"] = self._autoreset_envs.copy()
        if self.action_mask is not None:
            arrays["action_mask"] = self.action_mask.copy()
        return arrays

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        if self._state is None or not self.saves_state:
            super().set_state(arrays)
            return
        self.reset()  # gymnasium steps no environment that was never reset
        own = {n.removeprefix(_OWN): a for n, a in arrays.items() if n.startswith(_OWN)}
        for i, env in enumerate(self._inner):
            self._state.write(env, {name: array[i] for name, array in own.items()})
            env.np_random = generator_of(arrays["generator"][i])
            limit: Any = self._limits[i]
            if limit is not None:
                limit._elapsed_steps = int(arrays["elapsed"][i])
        self._autoreset_envs[:] = arrays["ended"]
        if self.action_mask is not None:
            self.action_mask[:] = arrays["action_mask"]


def where_it_failed(error: BaseException) -> int | None:
    """Which of a vector's environments raised an error, where they are stepped one by one."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename == sync_vector_env.__file__:  # gymnasium's loop counts by i
            return frame.f_locals.get("i")
        trace = trace.tb_next
    return None


def not_drawn(env: str, reason: str) -> BadEnvironment:
    return BadEnvironment(
        f"env {env} cannot be rendered as images, {reason}: leave --video out, or offer"
        f' render_mode "rgb_array" in the environment'
    )


class Parts(gymnasium.ObservationWrapper):
    """An observation in parts, as one vector: what the policy sees, and then the critic's own.

    Args:
        name: of the environment, for messages.
        env: with a `Dict` observation. Its part `action_mask`, if there is one, says which actions
            are legal; it is no observation.
        critic_obs: the part that only the critic sees; all others are the policy's.

    Raises:
        UnsupportedEnv: where the mask does not have an entry for each choice, or the policy sees
            nothing.
    """

    def __init__(self, name: str, env: gymnasium.Env, critic_obs: str):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        parts = dict(env.observation_space.spaces)
        mask = parts.pop("action_mask", None)
        own = parts.pop(critic_obs, None)
        if own is None and critic_obs != CRITIC:
            raise _no_such_part(name, critic_obs, ", ".join(parts))
        self._policy, self._critic = spaces.Dict(parts), own
        if not parts:
            raise UnsupportedEnv(
                f"env {name} has observations without a part that the policy sees: give it one beside"
                f" action_mask and {critic_obs}"
            )
        self.privileged = 0 if own is None else spaces.flatdim(own)
        size = spaces.flatdim(self._policy) + self.privileged
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._key = critic_obs
        self.mask_size = 0 if mask is None else _choices(env.action_space)
        if mask is not None and (mask.shape is None or np.prod(mask.shape) != self.mask_size):
            raise UnsupportedEnv(
                f"env {name} has the action_mask {mask} for the actions {env.action_space}: give it"
                f" {self.mask_size} entries, one for each choice"
                if self.mask_size
                else f"env {name} has an action_mask, but its actions {env.action_space} have no"
                f" choices to forbid: leave it out"
            )
        self.action_mask = np.ones(self.mask_size, bool)  # written over by each observation

    def observation(self, observation: Any) -> np.ndarray:
        if self.mask_size:
            self.action_mask[:] = np.asarray(observation["action_mask"]).astype(bool).ravel()
        policy_part = {name: observation[name] for name in self._policy.spaces}
        parts = [np.asarray(spaces.flatten(self._policy, policy_part))]
        if self._critic is not None:
            parts.append(np.asarray(spaces.flatten(self._critic, observation[self._key])))
        return np.concatenate(parts).astype(np.float32)


def _choices(space: spaces.Space) -> int:
    """How many values a discrete action has, over all its components; 0 for others."""
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(space.n) if isinstance(space, spaces.Discrete) else 0


_STATELESS = (
    Parts, wrappers.TimeLimit, wrappers.OrderEnforcing, wrappers.PassiveEnvChecker,
    wrappers.TransformAction, wrappers.TransformObservation, wrappers.FlattenObservation,
)  # fmt: skip


def _below_wrappers(env: gymnasium.Env) -> gymnasium.Env:
    """The environment below the wrappers that keep no state, or whose state we save.

    A wrapper of the user's own that saves a state, by methods that it may have from any class, saves that of
    all below it.
    """
    while isinstance(env, _STATELESS) and own_state(env) is None and not _adds_methods(env):
        env = env.env
    return env


def _adds_methods(env: gymnasium.Env) -> bool:
    """Whether a wrapper's class is one of the user's own that does more than make itself."""
    kinds = type(env).__mro__
    own = kinds[: next(i for i, kind in enumerate(kinds) if kind in _STATELESS)]
    return any(callable(v) for kind in own for n, v in vars(kind).items() if n != "__init__")


def _time_limits(env: gymnasium.Env) -> list[wrappers.TimeLimit]:
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, wrappers.TimeLimit):
            found.append(env)
        env = env.env
    return found


def _no_such_part(name: str, critic_obs: str, parts: str) -> UnsupportedEnv:
    return UnsupportedEnv(
        f"critic_obs is {critic_obs!r}, but the observations of env {name} have {parts or 'no parts'}:"
        f" give {'one of these' if parts else 'an environment with a Dict'}, or leave it out"
    )


def plain_spaces(name: str, env: gymnasium.Env, critic_obs: str = CRITIC) -> gymnasium.Env:
    """Bring an environment's spaces to what the policies take.

    Observations: a vector of floats, or an image [channels, height, width] of bytes up to 255 (see
    `_as_image`). Anything else is flattened (one-hot for discrete ones); of a `Dict` one part may
    be the critic's alone and one the action mask (see `Parts`). Actions: `Discrete` from 0,
    `MultiDiscrete` from 0, or a vector `Box` of floats.

    Raises:
        UnsupportedEnv: for any other action space, for an observation that is no fixed number of
            values, for a mask that does not fit the actions, and for an image whose channels cannot
            be told.
    """
    action, observation = env.action_space, env.observation_space
    if isinstance(action, spaces.Box) and len(action.shape) == 1:
        supported = np.issubdtype(action.dtype, np.floating)
    elif isinstance(action, spaces.MultiDiscrete) and action.nvec.ndim == 1:
        supported = not any(action.start)
    else:
        supported = isinstance(action, spaces.Discrete)
    if not supported:
        raise UnsupportedEnv(
            f"env {name} has actions {action}: a policy needs a Discrete space, a MultiDiscrete one"
            f" that begins at 0, or a Box of floats, with one axis; wrap the environment to offer one"
            f" and name it module:EnvClass"
        )
    if isinstance(action, spaces.Discrete) and action.start != 0:
        start, n = int(action.start), int(action.n)
        env = wrappers.TransformAction(env, lambda a: a + start, spaces.Discrete(n))
    if not observation.is_np_flattenable:
        raise UnsupportedEnv(
            f"env {name} has observations {observation}, whose size changes: wrap the environment to"
            f" offer a fixed number of values and name it module:EnvClass"
        )
    if isinstance(observation, spaces.Dict):
        return Parts(name, env, critic_obs)
    if critic_obs != CRITIC:
        raise _no_such_part(name, critic_obs, "")
    if isinstance(observation, spaces.Box):
        if len(observation.shape) == 3 and observation.dtype == np.uint8:
            return _as_image(name, env, observation)
        if len(observation.shape) == 1:
            return env
    return wrappers.FlattenObservation(env)


def _as_image(name: str, env: gymnasium.Env, space: spaces.Box) -> gymnasium.Env:
    """Bring images of bytes to [channels, height, width] and to the range up to 255."""
    last = _channels_are_last(name, env, space.shape)
    binary = int(space.high.max()) <= 1  # zeros and ones, which would be 0 and 0.004 of 255
    if not last and not binary:
        return env
    shape = (space.shape[2], *space.shape[:2]) if last else space.shape

    def transform(image: Any) -> np.ndarray:
        image = np.ascontiguousarray(image.transpose(2, 0, 1)) if last else image
        return image * np.uint8(255) if binary else image

    return wrappers.TransformObservation(env, transform, spaces.Box(0, 255, shape, np.uint8))


def _channels_are_last(name: str, env: gymnasium.Env, shape: tuple[int, ...]) -> bool:
    """Which end of an image's shape has the channels: what the environment says, or the odd one out.

    Two equal sides are height and width. Of three different ones the channels are the smallest, if it
    is much smaller than the others.
    """
    said = (env.metadata or {}).get("channels")
    if said in ("first", "last"):
        return said == "last"
    first, middle, last = shape
    if said is None and first != last:
        if middle == first:
            return True
        if middle == last:
            return False
        if middle >= 4 * min(first, last):
            return last < first
    raise UnsupportedEnv(
        f"env {name} has images of shape {shape}, which do not show whether the channels are first"
        f" or last{'' if said is None else f', and metadata channels {said!r}'}: put"
        f' "channels": "first" or "last" into the environment\'s metadata'
    )
