"""A sampler of a run in a store: it takes the newest weights, collects, appends, until the run ends.

Sampler k steps the range k % S of the environments, where S is the number of ranges, and begins to
number its fragments at (k // S) * 2**20. So no two fragments of a run are made from the same noise.

    parent                                this process
    hello: store, run                ->   joins the run
                                     <-   `joined`: its number; `collects`: it has appended a fragment;
                                          `says`: sentences; `ended`: the run has; `error`: why it ends
"""

from __future__ import annotations

import json
import os
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Protocol

from cluster import wire
from cluster.asynchronous import FRAGMENTS
from cluster.child import parent
from cluster.engines.base import FIRST_STEP_TIMEOUT_S, START_TIMEOUT_S
from cluster.pool import SamplerError
from cluster.sampler import Sampler, TimedEpisode
from cluster.session import describe
from cluster.store.address import Link, StoreError, StoreLost
from cluster.store.fragment import pack_fragment
from cluster.store.heartbeat import Heartbeat
from cluster.store.keys import Ended, RunGone
from cluster.store.run import Record, RunStore
from cluster.store.watchdog import Watchdog, limited
from cluster.supervisor import SAME_ERROR_LIMIT
from common.errors import UserError
from rollout import Rollout, spread
from settings.config import FIELDS, Config
from settings.trust import refuse_strangers_code

_LOOKS_EVERY_S = 0.02  # for room in the store
_TRIES_EVERY_S = 0.5  # for weights, or a run, that are not there


def config_of(record: Record, run: str, trust: bool) -> Config:
    """The settings of a run.

    Args:
        trust: whether a class that they name (module:Class) may be imported.

    Raises:
        UserError: where they cannot be used here.
    """
    unknown = sorted(set(record.config) - FIELDS)
    if unknown:
        raise StoreError(
            f"the run {run} has the settings {', '.join(unknown)}, which this version of the project"
            f" does not: give all machines the same version"
        )
    settings: dict[str, Any] = record.config | {"trust": trust}
    config = Config(**settings)
    refuse_strangers_code(config, f"the run {run} in the store")
    return config


class Tell(Protocol):
    """Tells the parent something, by name."""

    def __call__(self, **words: object) -> None: ...


class StoreSampler:
    """One sampler, from its number on until the run ends or is gone.

    Args:
        store: the run.
        trust: see `config_of`.
        tell: says what this module's docstring lists.

    Attributes:
        seen: the version of the weights that were fetched last.

    Raises:
        Ended, RunGone: where the run is not there, or not any more.
        UserError: where the run's environments cannot be made here.
    """

    def __init__(self, store: RunStore, record: Record, trust: bool, tell: Tell):
        self._store, self._tell = store, tell
        self._config = config = config_of(record, store.run, trust)
        self.number = store.join(record.samplers)
        tell(joined=self.number)
        ranges = spread(config.env_num, record.samplers, config.envs_together)
        self.envs = ranges[self.number % record.samplers]
        self._first = self.number // record.samplers * FRAGMENTS
        with limited(START_TIMEOUT_S):
            self._sampler = Sampler(config, *self.envs, self.number)
        self._out = Rollout.empty(self._sampler.spec, self.envs[1] - self.envs[0])
        self._version = self.seen = -1  # of the weights that act; of those that were fetched last
        images = config.store_compression == "auto" and self._sampler.spec.obs_dtype == "uint8"
        self._compress = images or config.store_compression == "zstd"
        self._errors: list[tuple[str, int | None]] = []  # of one kind, without a fragment between
        url = store.link.url
        self._heartbeat = Heartbeat(url, store.run, "sampler", self.number)
        self._watchdog = Watchdog(
            lambda: self._sampler.progress, config.sampler_timeout,
            max(config.sampler_timeout, FIRST_STEP_TIMEOUT_S),
        )  # fmt: skip

    def run(self) -> None:
        """Collect until the run ends, or is gone.

        Raises:
            Ended, RunGone: then.
            StoreLost: where the store was away for too long.
            SamplerError: where the environments raise the same error time and again.
        """
        number, reset, has_appended, size = 0, True, False, 0
        while True:
            self._take_weights(self._wait_for_room(size))
            episodes = self._collect(self._first + number, reset)
            if episodes is not None:
                size = self._append(number, reset, episodes)
                if not has_appended:
                    self._tell(collects=True)
                has_appended = True
            number, reset = number + 1, episodes is None

    def _take_weights(self, newest: int) -> None:
        """Act with the newest weights; wait where there are none yet that can be used."""
        # a store that came back with an older state has older ones
        while self.seen != newest or self._version < 0:
            known, (self.seen, message) = self.seen, self._store.weights()
            newest = self.seen
            try:
                _, arrays = wire.unpack(message)
                wire.refuse_unlike(arrays, self._sampler.model.get_weights())
            except wire.WireError as error:
                if self.seen != known:
                    self._tell(says=f"sampler {self.number} refuses weights {self.seen}: {error}")
            else:
                self._sampler.model.set_weights(arrays)
                self._version = self.seen
            if self._version < 0:
                time.sleep(_TRIES_EVERY_S)
                self._store.stream.has_room(0)  # raises where the run has ended

    def _collect(self, fragment: int, reset: bool) -> list[TimedEpisode] | None:
        """The episodes of a fragment; None where an environment, or the policy, raised an error.

        Raises:
            SamplerError: for the fifth of the same kind in a row, and for one that the user has to mend.
        """
        try:
            with self._watchdog.watching():
                episodes = self._sampler.collect(fragment, reset, self._out)
        except Exception as error:  # an environment may raise anything
            told = describe(error, self._sampler)
            kind = (told["cause"], told.get("where"))
            self._errors = [*self._errors, kind] if kind in self._errors else [kind]
            name = f"sampler {self.number} (store, process {os.getpid()})"
            stops = told.get("final") or (told.get("not_finite") and self._config.nan == "stop")
            if stops or len(self._errors) >= SAME_ERROR_LIMIT:
                times = f" {len(self._errors)} times in a row" if len(self._errors) > 1 else ""
                raise SamplerError(f"{name} lost a fragment{times}: {told['reason']}") from error
            self._tell(says=f"{name} lost a fragment: {told['reason']}\nits environments are reset")
            return None
        self._errors = []
        return episodes

    def _wait_for_room(self, size: int) -> int:
        """Wait until so many bytes have room, so that they are collected under the newest weights; the
        version of these."""
        while (newest := self._store.stream.has_room(size)) is None:
            time.sleep(_LOOKS_EVERY_S)
        return newest

    def _append(self, number: int, reset: bool, episodes: list[TimedEpisode]) -> int:
        """Append the fragment, when there is room; its bytes."""
        message = pack_fragment(
            self.number, number, self._version, reset, self.envs, episodes, self._out,
            self._compress,
        )  # fmt: skip
        while self._store.stream.append(self.number, number, message) is None:
            self._wait_for_room(len(message))
        return len(message)

    def close(self) -> None:
        self._watchdog.close()
        self._heartbeat.close()
        self._sampler.close()


def collect(store: RunStore, trust: bool, timeout: float, tell: Tell) -> None:
    """Be a sampler until the run ends. Where the store loses the run, wait until it is founded anew.

    Args:
        trust: see `config_of`.
        timeout: how long to wait [s].
        tell: see `StoreSampler`.

    Raises:
        UserError: where it cannot go on.
    """
    since, seen = time.monotonic(), -1
    while True:
        try:
            record = store.record()
            if record is None:
                raise RunGone
            sampler = StoreSampler(store, record, trust, tell)
            try:
                sampler.run()
            finally:
                since, seen = time.monotonic(), max(seen, sampler.seen)
                sampler.close()
        except (Ended, RunGone) as error:
            # a store may have come back with a state from before the run went on
            if isinstance(error, Ended) and error.version >= seen:
                return
            if time.monotonic() - since > timeout:
                raise StoreLost(
                    f"the store at {store.link.url} has not had the run {store.run} for"
                    f" {timeout:g} s: look whether its trainers live, and start samplers for another"
                ) from None
            time.sleep(_TRIES_EVERY_S)


def serve() -> None:
    """Run a sampler's process. It ends with its parent."""
    connection, _ = parent()
    told = json.loads(connection.recv_bytes())
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    import torch

    torch.set_num_threads(1)  # samplers share the cores; more would sum in another order

    def tell(**words: object) -> None:
        connection.send_bytes(json.dumps(words).encode())

    store = RunStore(Link(told["url"], told["timeout"], lambda text: tell(says=text)), told["run"])
    try:
        collect(store, told["trust"], told["timeout"], tell)
        tell(ended=True)
    except UserError as error:
        tell(error=str(error), exit_code=error.exit_code)
    os._exit(0)  # threads of environments must not keep it


def _end_with_parent(connection: Connection) -> None:
    try:
        while True:
            connection.recv_bytes()
    except (EOFError, OSError):  # the parent has closed it, or is gone
        os._exit(0)
