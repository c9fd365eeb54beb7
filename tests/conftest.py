from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import settings

from common.ports import free_port

# numba compiles in a test's first call, and machines are shared
settings.register_profile("project", deadline=None, max_examples=60)
settings.load_profile("project")
# the tests run in parallel: more threads would spin against one another
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))

# a shell that starts the tests in the background has Ctrl-C ignored, by all that they start too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# as `nohup` has the end of the terminal ignored
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# torch's compiler names its cache to all processes that are started after it
COMPILERS_CACHE = "TORCHINDUCTOR_CACHE_DIR"
USERS_CACHE = os.environ.get(COMPILERS_CACHE)

ROOT = Path(__file__).resolve().parent.parent
# the tests whose results depend on the processor's kernels, for `make test-processors`
NUMERICAL = ("test_agent", "test_algorithm", "test_model", "learning", "distributions", "networks")
# of what processes exchange, of torch's switches and caches, or of what is learned in the end: the slowest
NOT_NUMERICAL = (
    "learning/test_trainers.py",
    "learning/test_gpu.py",
    "learning/test_compiled_step.py::test_torchs_own_switches_are_as_before",
    "learning/test_compiled_step.py::test_torch_caches_the_whole_of_the_gradient_steps",
    "learning/test_compiled_step.py::test_a_compile_that_fails_leaves_no_switch_behind",
    "learning/test_compiled_step.py::test_a_later_run_takes_the_kept_step",
    "learning/test_native.py::test_the_number_of_cores_changes_no_bit",
    "test_agent.py::test_a_network_over_time_remembers_what_is_no_longer_seen",
    "learning/test_advantages.py::test_endless_reward_cut_off_by_a_time_limit_is_worth_100",
)
BIN = Path(sys.executable).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without numerical tests, where those are asked for: to import them takes seconds."""
    if config.getoption("-m") != "numerical" or ROOT / "tests" not in collection_path.parents:
        return None
    top = collection_path.relative_to(ROOT / "tests").parts[0].removesuffix(".py")
    return None if top in NUMERICAL else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(ROOT / "tests")
        numerical = path.parts[0].removesuffix(".py") in NUMERICAL
        if numerical and not f"{path}::{item.name}".startswith(NOT_NUMERICAL):
            item.add_marker(pytest.mark.numerical)


@pytest.fixture(autouse=True)
def broken_pipes_are_errors() -> Iterator[None]:
    """A test that asks for help makes them end its process (`common.terminal`), and so the next ones."""
    yield
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def run_command(
    *arguments: str, cwd: Path = ROOT, timeout: float = 150
) -> subprocess.CompletedProcess:
    """Run one of the project's commands as a user would, and return what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if USERS_CACHE is None:
        env.pop(COMPILERS_CACHE, None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env,
    )  # fmt: skip


def assert_runs_are_kept(command: Sequence[str], out: Path, files: str) -> None:
    """A benchmark's command runs nothing again, and mixes nothing with runs of other settings.

    Args:
        out: the folder of its runs.
        files: a pattern of files in it that no second run may touch.
    """
    runs = {path: path.stat().st_mtime_ns for path in out.glob(files)}
    again = run_command(*command)
    assert again.returncode == 0, again.stderr
    assert runs == {path: path.stat().st_mtime_ns for path in out.glob(files)}
    other = run_command(*command, "--gamma", "0.5")
    assert other.returncode == 1
    assert "give the same, or another --out" in other.stderr


@pytest.fixture(scope="session")
def xparl_cluster() -> Iterator[str]:
    """A real xparl cluster of 4 CPUs, started by the project's own console command."""
    port = free_port()
    started = subprocess.run(
        [str(BIN / "xparl"), "start", "--port", str(port), "--cpu_num", "4"],
        timeout=90, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield f"localhost:{port}"
    finally:
        for process in cluster_processes(port):
            with contextlib.suppress(ProcessLookupError):  # it ended with one before it
                os.kill(process, signal.SIGKILL)


def cluster_processes(port: int) -> list[int]:
    """The processes of the cluster at a port: all share its session."""
    sessions = {
        int(stat.rpartition(")")[2].split()[3])
        for stat, command in _processes()
        if f"localhost:{port}" in command or f"--port {port}" in command.replace("\0", " ")
    }
    return [
        int(stat.split()[0])
        for stat, _ in _processes()
        if int(stat.rpartition(")")[2].split()[3]) in sessions
    ]


def _processes() -> list[tuple[str, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append(((folder / "stat").read_text(), (folder / "cmdline").read_text()))
        except OSError:
            continue
    return found


def processes_mentioning(text: str) -> list[int]:
    return [int(stat.split()[0]) for stat, command in _processes() if text in command]


def still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """A dead process that init has not reaped yet does not run."""
    running = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def is_running(pid: int) -> bool:
    try:
        return bool(still_running([psutil.Process(pid)]))
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.05)


def control_groups(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Control groups as Linux shows them, in files: where they are mounted, and the process."""
    process, mount = folder / "proc", folder / "cgroup"
    process.mkdir()
    (process / "cgroup").write_text(lines)
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    return mount, process


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses to write more [bytes], as a full disk does."""
    before, cached = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would keep the half of a module that it imports now
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = cached
