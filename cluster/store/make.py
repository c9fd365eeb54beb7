"""The parts that `--store` asks for: the server, the run in it, and a trainer's pool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from cluster.store.address import Link, StoreError
from cluster.store.embedded import EmbeddedServer
from cluster.store.keys import RunGone
from cluster.store.local import LocalSamplers
from cluster.store.pool import StorePool
from cluster.store.run import Record, RunStore, runs
from cluster.store.sample import config_of
from cluster.store.shared_weights import MARGIN, found
from common import launched
from rollout import RolloutSpec, Weights
from settings.config import Config, ConfigError
from settings.store_url import EMBEDDED, FORM, parse, without_password
from settings.trust import names_code


@contextlib.contextmanager
def server(store: str) -> Iterator[str]:
    """The URL of the server that `--store` names. In this context, the embedded one runs.

    To be entered in the main thread: see `EmbeddedServer`.
    """
    if store != EMBEDDED:
        yield store
        return
    with contextlib.closing(EmbeddedServer()) as embedded:
        yield embedded.url


def run_at(url: str, config: Config, say: Callable[[str], None], run: str) -> RunStore:
    """The place of a run, by its id, in the store at a URL."""
    return RunStore(Link(url, config.store_timeout, say), run)


def run_of(
    url: str, run: str | None, say: Callable[[str], None], timeout: float = 60.0
) -> RunStore:
    """The run with this id in a store, or its only one.

    Args:
        url: of the store; the password is taken out of it.
        timeout: how long the store may be away [s].

    Raises:
        UserError: where the URL is none, and where there is no run, or more than one.
    """
    url = without_password(url)
    try:
        parse(url)
    except ValueError:
        raise ConfigError(f"store must be the URL of a server: {FORM}") from None
    link = Link(url, timeout, say)
    if run is None:
        names = runs(link)
        if len(names) != 1:
            has = f"{len(names)} runs, {', '.join(names)}: give one as --run" if names else "no run"
            raise StoreError(f"the store at {url} has {has}")
        (run,) = names
    return RunStore(link, run)


def joined(store: RunStore, trust: bool, flag: str) -> tuple[Record, Config]:
    """What a run was founded with, and its settings, for a trainer or a follower that joins it.

    Args:
        trust: whether a class that they name (module:Class) may be imported.
        flag: which has given the run's id.

    Raises:
        UserError: where there is no such run, or its settings cannot be used here.
    """
    record = store.record()
    if record is None:
        raise StoreError(
            f"the store at {store.link.url} has no run {store.run}: give {flag} the id that the run has"
            f" printed, and --store its own"
        )
    return record, config_of(record, store.run, trust)


def found_pool(
    store: RunStore, config: Config, spec: RolloutSpec, weights: Weights, samplers: int, local: int,
    steps: int, resumes: bool, say: Callable[[str], None],
) -> StorePool:  # fmt: skip
    """Make a run, start samplers of it on this machine, and be its first trainer.

    Where the run is there already, because its first trainer was lost, be that.

    Args:
        weights: those that the run begins with.
        samplers: into how many equal ranges the environments are spread.
        local: how many samplers to start here.
        steps: environment steps that the run has taken so far.
        resumes: whether the run may be there.

    Raises:
        StoreError: where it is there and may not be.
    """
    record = Record(config.to_dict(), samplers)
    # fragments of a run that goes on in a new place have other noise than those before
    first = (weights.version + MARGIN) * samplers if steps else 0
    if not found(store, record, config, weights, first, steps):
        there = store.record()
        if there is None or not resumes:
            raise StoreError(
                f"the store at {store.link.url} has a run {store.run} already: give --join"
            )
        record = Record(config.to_dict(), there.samplers)
        with contextlib.suppress(RunGone):  # meanwhile: the pool makes it anew
            weights = Weights(store.version(), weights.arrays)  # until the newest are fetched
            store.open(record, launched.start() or "")
    trust = config.trust or bool(names_code(config))  # the user has named it
    started = LocalSamplers(store.link.url, store.run, local, trust, config.store_timeout, say)
    pool = StorePool(store, record, config, spec, weights, started, say)
    pool.weights.steps = steps
    return pool


def join_pool(
    store: RunStore, record: Record, config: Config, spec: RolloutSpec, weights: Weights,
    say: Callable[[str], None],
) -> StorePool:  # fmt: skip
    """Be one more trainer of a run.

    Args:
        record, config: see `joined`.
        weights: any of the model's, for their shapes; `StorePool.weights.newest` has those of the run.
    """
    return StorePool(store, record, config, spec, weights, None, say)
