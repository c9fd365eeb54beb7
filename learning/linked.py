"""Trainers that take each gradient step together, in processes of one machine or of several."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from common import launched
from common.errors import TrainerLost, UserError
from learning.common_memory import CommonMemory
from learning.heartbeat import Heartbeat
from learning.messages import HEAD, pack, unpack
from learning.trainers import Refused, Trainers
from learning.undo import State

_AT_ONCE = 4096  # bytes; what is larger takes a second exchange
_STOPPED = "stopped"  # where the store has the reason
_INTERFACES = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


class Linked(Trainers):
    """The trainers that a launcher has started, over `torch.distributed`.

    Messages and tensors on the CPU go through memory where all trainers are on one machine, and over
    gloo otherwise; tensors on GPUs go over NCCL.

    Args:
        store: in which the trainers find one another.
        rank, size: this one's number, and how many there are.
    """

    def __init__(self, store: Store, rank: int, size: int):
        self.rank, self.size, self.counters = rank, size, (rank,)
        self.meet_in_steps = size > 1
        self._store = store
        self._on_gpu: dist.ProcessGroup | None = None
        self._memory: CommonMemory | None = None  # of the trainers of one machine, once it is used
        self._heartbeat: Heartbeat | None = None
        with self._connecting():
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
            with cls._connecting():
                store, rank, size = next(rendezvous("env://"))
        except ValueError as error:
            reason = str(error).partition("rendezvous: ")[2] or str(error)
            raise UserError(
                f"RANK and WORLD_SIZE are set, as by a launcher ({reason}): start the trainers by"
                f" torchrun or --trainers, or unset RANK"
            ) from None
        # torchrun's store still holds the addresses of those that it has started before
        return cls(PrefixStore(f"start {launched.restarts()}", store), rank, size)

    @staticmethod
    @contextlib.contextmanager
    def _connecting() -> Iterator[None]:
        """Whatever torch raises in here says that the trainers do not find one another."""
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            names = " and ".join(
                f"{name} is {os.environ[name]}" for name in _INTERFACES if name in os.environ
            )
            raise TrainerLost(
                f"the trainers cannot be connected ({_reason(error)}): start all of them, with one"
                f" address, and let {' and '.join(_INTERFACES)} name an interface of this machine"
                f" that reaches it ({names or 'neither is set'})"
            ) from None

    @staticmethod
    @contextlib.contextmanager
    def _talking() -> Iterator[None]:
        """Whatever torch raises in here says that a connection has ended."""
        try:
            yield
        except torch.OutOfMemoryError:  # another kind of RuntimeError
            raise
        except (dist.DistError, RuntimeError) as error:
            raise TrainerLost(f"another trainer is gone ({_reason(error)})") from None

    def use(self, device: str) -> None:
        if device == "cuda":
            with self._connecting():
                self._on_gpu = dist.new_group(backend="nccl")

    @property
    def _on_one_machine(self) -> bool:
        return launched.here() == self.size

    def sum(self, tensor: Tensor) -> None:
        if self._on_one_machine and not tensor.is_cuda:
            self._memory_for(tensor.nbytes).sum(tensor)
            return
        with self._talking():
            dist.all_reduce(tensor, group=self._on_gpu if tensor.is_cuda else None)

    def _memory_for(self, size: int) -> CommonMemory:
        """Memory of the trainers of this machine in which each of them has so many bytes."""
        if self._memory is not None and size <= self._memory.capacity:
            return self._memory
        if self._memory is not None:
            self._memory.close()
            self._memory = None  # what follows may fail
        capacity = max(_AT_ONCE, 1 << (size - 1).bit_length())
        self._memory = CommonMemory(self.rank, self.size, capacity, self._gather_over_gloo)
        return self._memory

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
        if self._on_one_machine:
            return self._memory_for(len(message)).gather(message)
        return self._gather_over_gloo(message)

    def _gather_over_gloo(self, message: bytes) -> list[bytes]:
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
        if self._memory is not None:
            self._memory.close()
        dist.destroy_process_group()  # its threads would abort the process at its end


def _reason(error: Exception) -> str:
    """The first sentence of an error of torch's, without the place in its sources."""
    return re.sub(r"^\[.*?\] ", "", str(error)).partition(". ")[0].splitlines()[0]
