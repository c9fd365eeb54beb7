"""Collection in lockstep (policy_lag 0 and 1): each rollout is one fragment of every sampler.

Consumes weights, which `request` hands to all samplers at once, and produces whole rollouts, for
which `gather` waits. Two rollouts exist, so the learner may read one while the samplers fill the
other: a gathered rollout stays valid until the second `request` after it.

A sampler that is lost, or that is given up as a straggler, leaves its columns of the fragment
without valid rows. The others are learned from at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from cluster.engines.base import Part
from cluster.pool import Environments, Request, SamplerError
from cluster.sampler import in_order
from cluster.supervisor import Outcome, Supervisor
from rollout import Rollout, Weights


class LockstepPool:
    """See `cluster.pool.SamplerPool`.

    Args:
        supervisor: of the samplers. Taken over.

    Attributes:
        rows_lost: steps of environments that fragments lack.
    """

    dropped = dropped_steps = dropped_episodes = 0  # no fragment comes too late

    def __init__(self, supervisor: Supervisor):
        self.supervisor = supervisor
        self.engine = engine = supervisor.engine
        self.name, self.spec, self.samplers = engine.name, engine.spec, engine.samplers
        self.rows_lost = 0
        self._slots = engine.slots or [Rollout.empty(self.spec, engine.width) for _ in "12"]
        self._collects_again = engine.config.on_loss == "collect_again"
        self._in_flight: Request | None = None
        self._asked: set[int] = set()

    @property
    def samplers_alive(self) -> int:
        return self.supervisor.samplers_alive

    @property
    def restarts(self) -> int:
        return self.supervisor.restarts

    @property
    def alarms(self) -> int:
        return self.supervisor.alarms

    def request(
        self,
        weights: Weights,
        fragment: int,
        reset: bool,
        keep: bool = False,
        restore: Environments | None = None,
    ) -> None:
        """Ask every sampler that is there for its part of a fragment. Returns at once."""
        if self._in_flight is not None:
            raise RuntimeError(f"fragment {self._in_flight.fragment} has not been gathered yet")
        envs = self.engine.config.env_num
        for name, array in (restore or {}).items():
            if len(array) != envs:
                raise ValueError(
                    f"restore has {name!r} of {len(array)} environments, but env_num is {envs}"
                )
        self._in_flight = Request(fragment, reset, weights.version, keep, restore)
        self.supervisor.publish(weights)
        self._asked = self._ask(self._in_flight)

    def _ask(self, request: Request) -> set[int]:
        send, waits = self.supervisor.send, self._collects_again
        return {i for i in range(self.samplers) if send(i, request, waits)}

    def gather(self) -> Rollout:
        """Wait for the fragment that was requested: [T, env_num].

        Raises:
            SamplerError: where samplers are lost time and again.
        """
        request, self._in_flight = self._in_flight, None
        if request is None:
            raise RuntimeError("nothing was requested")
        config, slot = self.engine.config, self._slots[request.fragment % 2]
        answers: dict[int, Outcome] = {}
        attempts: Counter[int] = Counter()
        waiting = self._asked
        # who is to be asked as soon as that can be done
        unasked = set(range(self.samplers)) - waiting if self._collects_again else set()
        due = dict.fromkeys(unasked, request)
        enough = self.samplers * (config.straggler_share or 1.0)
        while not answers or (len(answers) < enough and (waiting or self._waits_for(due))):
            waiting |= {i for i, again in due.items() if self.supervisor.send(i, again, True)}
            if not (waiting or answers):  # all were lost: whoever is there again
                waiting = self._ask(request)
            due = {i: again for i, again in due.items() if i not in waiting}
            for outcome in self.supervisor.wait():
                index = outcome.index
                waiting.discard(index)
                if outcome.part is not None:
                    answers[index] = outcome
                    if self.engine.slots is None:
                        _copy(outcome.part.columns, slot.columns(*self.engine.columns[index]))
                    continue
                attempts[index] += 1
                if self._collects_again or not (waiting or answers):
                    due[index] = request._replace(attempt=attempts[index])
        for index in waiting:
            self.supervisor.give_up(index)
        return self._rollout(request, slot, [answers[index] for index in sorted(answers)])

    def _waits_for(self, due: Iterable[int]) -> bool:
        return self._collects_again and any(map(self.supervisor.may_come, due))

    def _rollout(self, request: Request, slot: Rollout, answers: list[Outcome]) -> Rollout:
        """The fragment, of the answers in the order of the samplers."""
        engine, config = self.engine, self.engine.config
        parts = [answer.part for answer in answers if answer.part is not None]
        arrays = slot.arrays()
        if len(parts) < self.samplers:
            there = np.concatenate([np.arange(*engine.columns[a.index]) for a in answers])
            arrays = _without(arrays, there, engine.width)
            self.rows_lost += self.spec.steps * (engine.width - len(there))
        rollout = Rollout.of(arrays)
        rollout.policy_version = request.version
        rollout.carried = 0 if request.reset else config.carried_steps
        rollout.reset = np.zeros(engine.width, bool)
        for answer in answers:
            rollout.reset[slice(*engine.columns[answer.index])] = answer.request.reset
        rollout.episodes = in_order(episode for part in parts for episode in part.episodes)
        rollout.env_ranges = [engine.envs]
        rollout.raw_sps = sum(part.columns.raw_sps for part in parts)
        if request.keep and len(parts) == self.samplers:
            rollout.environments = _side_by_side(parts)
        return rollout

    def close(self) -> None:
        self._slots = []
        self.supervisor.close()


def _without(arrays: dict[str, np.ndarray], there: np.ndarray, envs: int) -> dict[str, np.ndarray]:
    """A copy of a fragment in which only some environments have valid rows.

    The others' columns repeat those that are there, because a gradient through numbers that no
    environment gave might be NaN, though its weight is 0. A straggler may still be writing its own.
    """
    filled = there[np.arange(envs) % len(there)]
    filled[there] = there
    copies = {name: array[:, filled] for name, array in arrays.items()}
    lost = np.setdiff1d(np.arange(envs), there)
    copies["valid"][:, lost] = False
    return copies


def _copy(source: Rollout, target: Rollout) -> None:
    arrays = source.arrays()
    for name, array in target.arrays().items():
        array[...] = arrays[name]


def _side_by_side(parts: list[Part]) -> Environments:
    """The parts' environments in one set of arrays [env_num, ...].

    Raises:
        SamplerError: where samplers keep them in different forms.
    """
    kept = [part.environments or {} for part in parts]
    # a state's type may differ between an episode's begin and its midst, its shape may not
    forms = [{name: array.shape[1:] for name, array in arrays.items()} for arrays in kept]
    for sampler, form in enumerate(forms):
        if form != forms[0]:
            raise SamplerError(f"sampler {sampler} keeps its environments' state in another form than"
                               f" sampler 0: give all machines the same packages")  # fmt: skip
    return {name: np.concatenate([arrays[name] for arrays in kept]) for name in kept[0]}
