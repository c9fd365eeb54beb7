"""Any other registered gymnasium id, and classes of the user's own, as `module:EnvClass`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium

from common.errors import UserError
from common.user_class import find
from common.values import Needs
from envs.convention import Environments, Family, UnknownEnv, UnsupportedEnv
from envs.scalar import CRITIC, not_drawn, quiet_make, render_options, vectorize
from envs.state import own_state


@dataclass
class CustomOptions:
    """Settings of environments with observations in parts."""

    critic_obs: Annotated[str, Needs(family="custom")] = CRITIC
    """The part of a Dict observation that the critic sees and the policy does not."""


class Custom(Family):
    def owns(self, env: str) -> bool:
        return env in gymnasium.registry or ":" in env

    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, critic_obs: str = CRITIC,
        **options: Any,
    ) -> Environments:  # fmt: skip
        make_one = maker(env, **render_options(filmed))
        try:
            state_of = own_state if env not in gymnasium.registry else None
            return vectorize(env, make_one, num_envs, critic_obs, state_of)
        except UserError:
            raise
        except Exception as error:
            if not filmed:
                raise
            # a class of the user's own may take no option render_mode
            raise not_drawn(env, repr(error)) from None

    def options(self, config: CustomOptions, envs: range | None) -> dict[str, Any]:
        return {"critic_obs": config.critic_obs}


def maker(env: str, **options: Any) -> Callable[[], gymnasium.Env]:
    """A function that makes one environment of this name.

    Raises:
        UnknownEnv: where the module or the class cannot be found.
        UnsupportedEnv: where it is no gymnasium.Env.
    """
    if env in gymnasium.registry:
        return lambda: quiet_make(env, **options)
    own_class = find("env", env, UnknownEnv)
    if not (inspect.isclass(own_class) and issubclass(own_class, gymnasium.Env)):
        raise UnsupportedEnv(
            f"env {env!r} is {own_class!r}, which is not a subclass of gymnasium.Env"
        )
    return lambda: own_class(**options)


FAMILY = Custom()
