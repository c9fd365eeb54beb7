"""The convention that all environments here keep, and what each family of them must provide.

Autoreset is NEXT_STEP: after an episode's end the next observation is the episode's true final one,
the action given to it is ignored, and `terminated` is kept apart from `truncated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from common.errors import UserError


class UnknownEnv(UserError):
    """No such environment. The message has the nearest names."""


class UnsupportedEnv(UserError):
    """An environment whose spaces this project cannot train on."""


class BadEnvironment(UserError):
    """An environment that cannot be made, or that gives what no policy can learn from."""


class NotFiniteNumber(BadEnvironment):
    """An observation, an action or a reward is NaN or infinite. The message says whose, and when."""


class WrongOption(UserError):
    """A setting of an environment family that breaks a rule. The message has the remedy."""


class Spaces(NamedTuple):
    """An environment's spaces, and what else a policy and a run need to know before it is stepped.

    `frame_stack`: the number of frames that an observation stacks, or 0.
    `masks`: the environment says which actions are legal, by its `action_mask` [N, A] bool.
    `privileged`: how many of an observation's entries, the last, are for the critic alone.
    `action_structure`: see `Environments`.
    `saves_state`: `get_state` and `set_state` work.
    `episode_limit`: steps after which an episode is cut off, where that is known.
    """

    observation: spaces.Box
    action: spaces.Space
    frame_stack: int = 0
    masks: bool = False
    privileged: int = 0
    action_structure: tuple[str, int] | None = None
    saves_state: bool = False
    episode_limit: int | None = None


class Environments(VectorEnv):
    """N environments that are stepped together. A family's class sets only what differs from here.

    Observations are vectors of floats [N, D], images of bytes [N, channels, height, width], or
    planes of zeros and ones [N, height, width, planes] (a space whose `high` is 1). The arrays that
    `reset` and `step` return may be written over by the next step.
    """

    frame_stack: int = 0
    """Frames that an observation [N, frames, ...] stacks, oldest first; 0: none."""
    action_mask: np.ndarray | None = None
    """[N, A] bool: which parts of the next action are legal; written over by each step."""
    privileged: int = 0
    """How many of an observation's entries, the last, are for the critic alone."""
    action_structure: tuple[str, int] | None = None
    """How a MultiDiscrete action gives orders to units on a grid, and the number of its cells:
    "grid", an order for every cell; "unit_selection", a cell and the order for the unit on it."""
    episode_limit: int | None = None
    """Steps after which an episode is cut off, where that is known."""
    saves_state: bool = False
    """Whether `get_state` and `set_state` work."""
    has_extras: bool = False
    """Whether `extras` says anything, so that it is worth a call for each ended episode."""

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment.

        Args:
            seed: one for each environment, or the first one's, from which the others' count up.

        Returns:
            observations [N, ...], and information by name.
        """
        # gymnasium's vector environments take lists, which the hints of `VectorEnv` leave out
        return super().reset(seed=cast(Any, seed), options=options)

    def extras(self, env: int) -> dict[str, float] | None:
        """More numbers about the episode that environment `env` has just ended, by name.

        None: the episode ended for the learner, but goes on for whoever counts its return.
        """
        return {}

    def picture(self) -> np.ndarray:
        """Environment 0 as an image [height, width, 3] uint8; it must have been made `filmed`.

        Raises:
            BadEnvironment: where it cannot be drawn.
        """
        raise BadEnvironment(f"{type(self).__name__} has no picture: leave --video out")

    @property
    def frames_per_second(self) -> float:
        """Speed of a film of an episode: what the metadata says as `render_fps`, else 30."""
        said: Any = self.metadata.get("render_fps")
        return (
            float(said) if isinstance(said, (int, float, np.number)) and 0 < said <= 1000 else 30.0
        )

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the following steps depend on beside the actions; first axis N.

        Columns can be taken out and put into other environments made alike, for which `set_state`
        then gives the same observations, rewards and ends, bit for bit.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot save its state")

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `get_state` returned. No reset is needed before."""
        raise NotImplementedError(f"{type(self).__name__} cannot save its state")


class Family(ABC):
    """Environments that are made alike. Each family's module has one of these as `FAMILY`.

    A family's options are fields of the run's settings; `config` below is those settings. A family
    that has some declares them in a dataclass, which `envs.FamilyOptions` inherits.
    """

    @abstractmethod
    def owns(self, env: str) -> bool:
        """Whether an environment id belongs to this family."""

    @abstractmethod
    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, **options: Any
    ) -> Environments:
        """Make environments of an id that this family owns.

        Args:
            filmed: `picture` is asked for.
            options: what `options` or `evaluation_options` returned.
        """

    def ids(self) -> Iterable[str]:
        """The ids that gymnasium's registry does not list, for error messages."""
        return ()

    def options(self, config: Any, envs: range | None) -> dict[str, Any]:
        """What `make` needs for training.

        Args:
            envs: which of the run's environments are made. None: any one, to look at its spaces.
        """
        return {}

    def evaluation_options(
        self, config: Any, episodes: range, opponents: tuple[str, ...]
    ) -> dict[str, Any]:
        """What `make` needs for evaluation, an environment for each of these episodes.

        Args:
            opponents: whom to play against in turn, in a game. (): the run's own.
        """
        return self.options(config, None)

    def following(self, config: Any, given: Collection[str]) -> dict[str, Any]:
        """Settings, by name, that follow the family's options unless they are `given`."""
        return {}

    def validate(self, config: Any) -> None:  # noqa: B027 - most families have no rules
        """Check the family's options.

        Raises:
            WrongOption: for the first rule that is broken.
        """

    def envs_together(self, config: Any) -> int:
        """Environments that must be in one sampler, such as the two sides of a game."""
        return 1

    def prepare_film(self, env: str) -> None:  # noqa: B027 - nor any preparation
        """Prepare this process for making `filmed` environments; called before anything is made.

        Raises:
            BadEnvironment: where what draws is missing, with the remedy.
        """


def spaces_of_vec_env(venv: Environments) -> Spaces:
    observation = venv.single_observation_space
    assert isinstance(observation, spaces.Box)  # every family's `make` brings it to one
    return Spaces(
        observation, venv.single_action_space, venv.frame_stack, venv.action_mask is not None,
        venv.privileged, venv.action_structure, venv.saves_state, venv.episode_limit,
    )  # fmt: skip
