"""The state from before an update: to go back to, and to save when a signal comes meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = tuple[dict[str, np.ndarray], dict[str, Any]]  # arrays, and values that JSON can hold


class Undo:
    """Keeps a copy of a state while something changes it.

    Tensors are copied on their own device, into buffers that are used again every time: one pass
    over memory on the CPU, and no download from a GPU.

    Args:
        tensors: gives the state's tensors by name; shapes and devices are always the same.
        numbers: gives the rest of the state, as a copy.
        load_numbers: takes that rest back.
    """

    def __init__(
        self,
        tensors: Callable[[], Mapping[str, Tensor]],
        numbers: Callable[[], State],
        load_numbers: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], None],
    ):
        self._tensors, self._numbers, self._load_numbers = tensors, numbers, load_numbers
        self._copies: dict[str, Tensor] = {}
        self._views: dict[str, np.ndarray] = {}  # of the copies that are on the CPU
        self._kept: State | None = None

    @property
    def keeps(self) -> bool:
        """Whether a state is kept now."""
        return self._kept is not None

    @contextlib.contextmanager
    def on_failure(self) -> Iterator[None]:
        """Keep the state from before this block, and go back to it if the block raises.

        Within another such block this one does nothing: the outer one undoes more.
        """
        if self.keeps:
            yield
            return
        self._keep()
        try:
            yield
        except BaseException:
            self.go_back()
            raise
        finally:
            self._kept = None  # only now: a signal while it goes back saves the whole

    @torch.no_grad()
    def _keep(self) -> None:
        tensors = self._tensors()
        if not self._copies:
            self._copies = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            self._views = {n: c.numpy() for n, c in self._copies.items() if not c.is_cuda}
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor)
        self._kept = self._numbers()

    @torch.no_grad()
    def go_back(self) -> None:
        """Give everything the values that are kept."""
        assert self._kept is not None
        for name, tensor in self._tensors().items():
            tensor.copy_(self._copies[name])
        self._load_numbers(*self._kept)

    def state(self) -> State:
        """The state that is kept, in arrays of the caller's own.

        A signal handler may call this while torch compiles. Torch's operations compute nothing
        then in the thread that compiles: copies on the CPU are read without them, and those on a
        GPU are downloaded by another thread.
        """
        assert self._kept is not None
        arrays, counters = self._kept
        tensors = {name: view.copy() for name, view in self._views.items()}

        def download() -> None:
            for name, copy in self._copies.items():
                if name not in tensors:
                    tensors[name] = copy.cpu().numpy()

        if len(tensors) < len(self._copies):
            thread = Thread(target=download)
            thread.start()
            thread.join()
        return tensors | arrays, counters
