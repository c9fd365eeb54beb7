"""The trainers of a run: each learns from its own environments, and every step is that of all.

Trainer r of R has the r-th share of the environments and of each minibatch. Its gradient is a sum
over its own rows, divided by what all of them weigh; the sum over the trainers is then the gradient
of the whole minibatch. What else an update computes over all rows (`sum`, `moments`, `variance`,
`everyone`) is put together in the order of the ranks, so that all trainers get the same bits, take
the same decisions and hold the same weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from common import launched
from common.errors import TrainerLost, UserError
from learning.heartbeat import Heartbeat
from learning.messages import HEAD, pack, unpack
from learning.undo import State
from rollout import spread
from settings.config import Config

_AT_ONCE = 4096  # bytes; what is larger takes a second exchange
_STOPPED = "stopped"  # where the store has the reason


class Refused(UserError):
    """The run cannot begin. The first trainer says why; there is no message."""


class Shared(NamedTuple):
    """The tensors of an agent that trainers can have in common memory."""

    parameters: list[Tensor]
    moments: list[Tensor]  # Adam's
    statistics: list[Tensor]  # running moments, float64


class Joined(NamedTuple):
    """Where a run is: how many updates this trainer has to its name, and all environment steps."""

    updates: int
    environment_steps: int


class Trainers:
    """A group of one trainer, whose sums are its own numbers.

    Attributes:
        rank: this trainer's number, from 0.
        size: how many take each step together.
        counters: what sets this trainer's random streams apart from the others'.
    """

    rank, size = 0, 1
    counters: tuple[int, ...] = ()

    @property
    def leads(self) -> bool:
        """Whether this trainer logs, evaluates and saves."""
        return self.rank == 0

    def envs(self, config: Config) -> tuple[int, int]:
        """The run's environments [first, last) that this trainer learns from."""
        return spread(config.env_num, self.size, config.envs_together)[self.rank]

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all trainers."""

    def everyone(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> list[State]:
        """What each trainer gives: arrays, and values that JSON can hold, in the order of ranks."""
        return [(dict(arrays), dict(values))]

    def moments(self, count: int, mean: Tensor, var: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Each trainer's number of rows, with their mean and variance."""
        return [(count, mean, var)]

    def variance(self, numbers: np.ndarray) -> float:
        """The variance of the numbers [B] of all trainers; 0 where there are none."""
        return float(numbers.var()) if numbers.size else 0.0

    def from_first(self, make: Callable[[], State | None]) -> State | None:
        """What the first trainer makes, for all of them.

        Raises:
            UserError: where the first one does; `Refused` in the others.
        """
        return make()

    def run_dir(self) -> str | None:
        """The folder of the run that another process has begun in this one's place."""
        return None

    def use(self, device: str) -> None:
        """Take this trainer's GPU, where it learns on one. Trainers that need none of their own share."""
        if device == "cuda":
            torch.cuda.set_device(launched.local_rank() % torch.cuda.device_count())

    def join(self, shared: Shared) -> Joined | None:
        """Go on from what other trainers share already; wait until it is there.

        Returns:
            where the run is; None where there is nothing to join.
        """
        return None

    def share(self, begun: Joined) -> None:
        """Put this trainer's numbers where the others wait for them."""

    def updating(self, agent: Any) -> AbstractContextManager[None]:
        """The context of an update of the agent."""
        return contextlib.nullcontext()

    def stepping(self) -> AbstractContextManager[None]:
        """The context of a gradient step."""
        return contextlib.nullcontext()

    def moving_statistics(self) -> AbstractContextManager[None]:
        """The context in which running moments, and what depends on them, are changed."""
        return contextlib.nullcontext()

    def count(self, before: int, steps: int, times: Mapping[str, float]) -> int:
        """Count an update; the environment steps of the whole run, which were `before`.

        Args:
            steps: what this trainer knows of, and has not counted yet.
            times: seconds spent on it: time/sample_wait and time/learn.
        """
        return before + steps

    def metrics(self) -> dict[str, float]:
        """What the log shows of each trainer."""
        return {}

    def watch(self, lost: Callable[[str], None]) -> None:
        """Wait for all, then look out, in a thread, for trainers that are gone without a word.

        Args:
            lost: called in the thread with a sentence; it must end the process.
        """

    def note_stop(self, reason: str) -> None:
        """Leave word that this trainer ends now because a signal has asked for it."""

    def stopped(self) -> str | None:
        """The signal for which one of the trainers has ended by itself; None where none has."""
        return None

    def end_watch(self) -> None:
        """Look out no more: from now on the trainers end, each at its own time."""

    def end_run(self) -> None:
        """Tell the others that the run is over, and saved."""

    def close(self) -> None:
        """End the connections to the others."""


class Linked(Trainers):
    """The trainers that a launcher has started, over `torch.distributed`.

    Small messages and tensors on the CPU go over gloo; those on GPUs over NCCL.

    Args:
        store: in which the trainers find one another.
        rank, size: this one's number, and how many there are.
    """

    def __init__(self, store: Store, rank: int, size: int):
        self.rank, self.size, self.counters = rank, size, (rank,)
        self._store = store
        self._on_gpu: dist.ProcessGroup | None = None
        self._heartbeat: Heartbeat | None = None
        with self._talking():
            dist.init_process_group(
                "gloo", store=PrefixStore("group", store), rank=rank, world_size=size
            )

    @classmethod
    def as_launched(cls) -> Linked:
        """The group that this process's environment variables describe.

        Raises:
            UserError: where they do not say how the others are found.
            TrainerLost: where the others are not there.
        """
        file, size = launched.store(), launched.world()
        if file is not None and size is not None:
            return cls(FileStore(file, size), launched.rank(), size)
        try:
            with cls._talking():
                store, rank, size = next(rendezvous("env://"))
        except ValueError as error:
            reason = str(error).rpartition(": ")[2]
            raise UserError(
                f"RANK and WORLD_SIZE are set, as by a launcher ({reason}): start the trainers by"
                f" torchrun or --trainers, or unset RANK"
            ) from None
        # torchrun's store still holds the addresses of those that it has started before
        return cls(PrefixStore(f"start {launched.restarts()}", store), rank, size)

    @staticmethod
    @contextlib.contextmanager
    def _talking() -> Iterator[None]:
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            # without torch's place in its sources, and its guesses
            reason = re.sub(r"^\[.*?\] ", "", str(error)).partition(". ")[0].splitlines()[0]
            raise TrainerLost(f"another trainer is gone ({reason})") from None

    def use(self, device: str) -> None:
        super().use(device)
        if device == "cuda":
            with self._talking():
                self._on_gpu = dist.new_group(backend="nccl")

    def sum(self, tensor: Tensor) -> None:
        with self._talking():
            dist.all_reduce(tensor, group=self._on_gpu if tensor.is_cuda else None)

    def everyone(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> list[State]:
        message = pack(arrays, values)
        parts = self._gather(message[:_AT_ONCE].ljust(_AT_ONCE, b"\0"))
        sizes = [HEAD + int.from_bytes(part[:HEAD], "little") for part in parts]
        if max(sizes) > _AT_ONCE:
            rest = self._gather(message[_AT_ONCE:].ljust(max(sizes) - _AT_ONCE, b"\0"))
            parts = [part + more for part, more in zip(parts, rest, strict=True)]
        return [unpack(part[:size]) for part, size in zip(parts, sizes, strict=True)]

    def _gather(self, message: bytes) -> list[bytes]:
        """The messages of all trainers, which are equally long."""
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self._talking():
            dist.all_gather(parts, mine)
        return [part.numpy().tobytes() for part in parts]

    def moments(self, count: int, mean: Tensor, var: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        mine = {"mean": mean.cpu().numpy(), "var": var.cpu().numpy()}
        return [
            (
                values["count"],
                torch.from_numpy(arrays["mean"]).to(mean.device),
                torch.from_numpy(arrays["var"]).to(mean.device),
            )
            for arrays, values in self.everyone(mine, {"count": count})
        ]

    def variance(self, numbers: np.ndarray) -> float:
        mean, var = (float(numbers.mean()), float(numbers.var())) if numbers.size else (0.0, 0.0)
        mine = {"part": (numbers.size, mean, var)}
        parts = [values["part"] for _, values in self.everyone({}, mine)]
        total = sum(count for count, _, _ in parts)
        if not total:
            return 0.0
        mean = sum(count * mean for count, mean, _ in parts) / total
        return sum(count * (var + (own - mean) ** 2) for count, own, var in parts) / total

    def from_first(self, make: Callable[[], State | None]) -> State | None:
        made, message, refusal = None, b"", None
        if self.leads:
            try:
                made = make()
                message = b"" if made is None else pack(*made)
            except (UserError, SystemExit) as error:
                code = error.exit_code if isinstance(error, UserError) else error.code or 0
                refusal, message = error, str(code).encode()
        size = torch.tensor([len(message), refusal is not None])
        with self._talking():
            dist.broadcast(size, 0)
            content = torch.frombuffer(bytearray(message.ljust(int(size[0]), b"\0") or b"\0"), dtype=torch.uint8)  # fmt: skip
            dist.broadcast(content, 0)
        if refusal is not None:
            raise refusal
        if self.leads or not size[0]:
            return made
        message = content.numpy().tobytes()
        if size[1]:
            refused = Refused()
            refused.exit_code = int(message)
            raise refused
        return unpack(message)

    def watch(self, lost: Callable[[str], None]) -> None:
        self.everyone({}, {})  # whoever is still starting is accused of nothing
        self._heartbeat = Heartbeat(self._store, self.rank, self.size, lost)

    def note_stop(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone already
            self._store.set(_STOPPED, reason)

    def stopped(self) -> str | None:
        with contextlib.suppress(RuntimeError):
            if self._store.check([_STOPPED]):
                return self._store.get(_STOPPED).decode()
        return None

    def end_watch(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.end()

    def close(self) -> None:
        dist.destroy_process_group()  # its threads would abort the process at its end
