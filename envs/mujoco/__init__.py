"""MuJoCo's tasks of gymnasium, ids -v4 and -v5: the family's face.

`tasks` has a record of each task, `vector` the environments.
"""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path
from typing import Any

from envs.convention import BadEnvironment, Environments, Family
from envs.mujoco.tasks import TASKS
from envs.scalar import comes_from, not_drawn, quiet_make, vectorize

# mujoco is imported in functions: `prepare_film` must come before, and other families need it not


class Mujoco(Family):
    def owns(self, env: str) -> bool:
        return env in TASKS and comes_from(env, "gymnasium.envs.mujoco.")

    def make(
        self, env: str, num_envs: int, *, filmed: bool = False, **options: Any
    ) -> Environments:
        if filmed:
            return self._make_filmed(env, num_envs)
        from envs.mujoco.vector import MujocoEnvs

        return MujocoEnvs(env, num_envs)

    def _make_filmed(self, env: str, num_envs: int) -> Environments:
        """gymnasium's own environments, with a camera that follows the robot where there is one."""
        try:
            model: Any = quiet_make(env).unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
            cameras = [model.camera(i).name for i in range(model.ncam)]
            camera = {"camera_name": "track"} if "track" in cameras else {}
            return vectorize(
                env, lambda: quiet_make(env, render_mode="rgb_array", **camera), num_envs
            )
        except Exception as error:  # a renderer may raise anything
            raise not_drawn(env, repr(error)) from None

    def prepare_film(self, env: str) -> None:
        """Choose MuJoCo's off-screen renderer; it must be done before mujoco is first imported.

        EGL where there is a graphics card, else OSMesa, which draws on the CPU.
        """
        if "DISPLAY" in os.environ:
            return
        cards = [*Path("/dev").glob("nvidiactl"), *Path("/dev").glob("dri/renderD*")]
        renderer = os.environ.setdefault("MUJOCO_GL", "egl" if cards else "osmesa")
        library = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}.get(renderer)
        if library and ctypes.util.find_library(library[0]) is None:
            raise BadEnvironment(
                f"MuJoCo's renderer {renderer} needs the system library {library[0]}: install it"
                f" with `apt-get install {library[1]}`"
            )


FAMILY = Mujoco()
