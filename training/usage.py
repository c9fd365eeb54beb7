"""What a run takes of its machine: processors, memory, and the learner's GPU."""

from __future__ import annotations

import contextlib
import time

import psutil
import pynvml
import torch

_EVERY_S = 5.0
_GIB = 2**30


class Usage:
    """Measures, now and then, the learner, its child processes on this machine, and the machine.

    Args:
        device: the learner's.
    """

    def __init__(self, device: str):
        self._device = device
        self._learner = psutil.Process()
        self._measured = time.monotonic()
        self._seconds = self._processor_seconds(self._learner)
        self._children: dict[psutil.Process, float] = {}  # processor seconds of each
        psutil.cpu_percent()  # it measures since the last call

    def measure(self) -> dict[str, float]:
        """Means since the last measurement, or {} where that was a moment ago.

        Returns:
            `system/` with `learner_cores` and `children_cores`, where 1 is one core that is always
            busy; `learner_gib` and `children_gib`, resident, what processes share counted in each;
            `cpu_share` and `memory_share` of the machine, whoever takes them; with a GPU `gpu_share`,
            of the time (where its driver says so), and `gpu_gib`, of its memory that is taken.
        """
        now = time.monotonic()
        passed = now - self._measured
        if passed < _EVERY_S:
            return {}
        self._measured, before = now, self._seconds
        self._seconds = self._processor_seconds(self._learner)
        children_seconds, children_bytes = self._of_children()
        usage = {
            "learner_cores": (self._seconds - before) / passed,
            "learner_gib": self._learner.memory_info().rss / _GIB,
            "children_cores": children_seconds / passed,
            "children_gib": children_bytes / _GIB,
            "cpu_share": psutil.cpu_percent() / 100,
            "memory_share": psutil.virtual_memory().percent / 100,
            **self._gpu(),
        }
        return {f"system/{name}": value for name, value in usage.items()}

    def _of_children(self) -> tuple[float, int]:
        """Processor seconds of the children since the last measurement, and their bytes now."""
        seconds, size = {}, 0
        for child in self._learner.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                seconds[child] = self._processor_seconds(child)
                size += child.memory_info().rss
        spent = sum(now - self._children.get(child, 0.0) for child, now in seconds.items())
        self._children = seconds
        return spent, size

    def _gpu(self) -> dict[str, float]:
        if self._device == "cpu":
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        usage = {"gpu_gib": (total - free) / _GIB}
        with contextlib.suppress(RuntimeError, pynvml.NVMLError):  # a part of a GPU has no figure
            usage["gpu_share"] = torch.cuda.utilization(self._device) / 100
        return usage

    @staticmethod
    def _processor_seconds(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system
