"""What PARL's processes tell each other, as JSON. PARL sends it as pickles, which run code.

    {"job": {...}}, {"worker": {...}}     PARL's two messages, by the names of their fields
    {"names": [...]}                      the attributes of a remote object
    {"plain": ...}                        anything else that JSON can hold, such as a status

It is checked before it is used: `unpack` gives what PARL would have sent, or raises. Pickles are left
in one direction only. A learner sends its actors code and what their calls need, so an actor runs what
its learner wants; nobody runs what an actor, a worker or a master sends.
"""

from __future__ import annotations

import builtins
import html
import json
import re
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ADDRESS = re.compile(r"[0-9A-Za-z._-]{1,255}:[0-9]{1,5}")
_NAME = re.compile(r"[0-9A-Za-z._:-]{1,255}")
_GPUS = re.compile(r"[0-9,]{0,255}")
_LARGEST_PID = 2**22  # Linux's
_MOST_JOBS = 100_000


class BadMessage(ValueError):
    """Bytes that are none of the messages above."""


def _text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _count(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_JOB = {
    "job_address": _text(_ADDRESS),
    "worker_heartbeat_address": _text(_ADDRESS),
    "ping_heartbeat_address": _text(_ADDRESS),
    "worker_address": _or_none(_text(_ADDRESS)),
    "remove_job_address": _or_none(_text(_ADDRESS)),
    "log_server_address": _text(_ADDRESS),
    "job_id": _text(_NAME),
    "pid": _count(2, _LARGEST_PID),
    "n_cpu": _or_none(_count(0, _MOST_JOBS)),
    "gpu": _or_none(_text(_GPUS)),
}
_WORKER = {
    "worker_address": _text(_ADDRESS),
    "hostname": _text(_NAME),
    "jobs": lambda jobs: isinstance(jobs, list) and len(jobs) <= _MOST_JOBS,
    "n_cpu": _count(0, _MOST_JOBS),
    "gpu": _text(_GPUS),
}


def pack(value: Any) -> bytes:
    """A message, from what PARL would have pickled.

    Raises:
        TypeError: where JSON cannot hold it.
    """
    from parl.remote import message

    if isinstance(value, message.InitializedJob):
        content = {"job": _job_fields(value)}
    elif isinstance(value, message.InitializedWorker):
        content = {
            "worker": {
                "worker_address": value.worker_address,
                "hostname": re.sub(r"[^0-9A-Za-z._:-]", "_", value.hostname) or "_",
                "jobs": [_job_fields(job) for job in value.initialized_jobs],
                "n_cpu": value.allocated_cpu.n_cpu,
                "gpu": value.allocated_gpu.gpu,
            }
        }
    elif isinstance(value, set):
        content = {"names": sorted(value)}
    else:
        content = {"plain": value}
    return json.dumps(content, default=_listed).encode()


def _listed(value: Any) -> list[Any]:
    if isinstance(value, deque):
        return list(value)
    raise TypeError(
        f"a remote object returned a {type(value).__name__}: JSON cannot hold it, so it is not sent"
    )


def _job_fields(job: Any) -> dict[str, Any]:
    fields = {name: getattr(job, name, None) for name in _JOB.keys() - {"n_cpu", "gpu"}}
    fields["n_cpu"] = job.allocated_cpu and job.allocated_cpu.n_cpu
    fields["gpu"] = job.allocated_gpu and job.allocated_gpu.gpu
    return fields


def unpack(content: bytes | memoryview) -> Any:
    """What was packed; tuples and deques come as lists.

    Raises:
        BadMessage: for anything else.
    """
    try:
        message = json.loads(bytes(content).decode())
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not a message: {str(error)[:200]}") from None
    if not isinstance(message, dict) or len(message) != 1:
        raise BadMessage("not a message: it is no JSON object with one name")
    ((kind, value),) = message.items()
    if kind == "plain":
        return value
    if kind == "names" and isinstance(value, list) and all(isinstance(n, str) for n in value):
        return set(value)
    if kind == "job":
        return _job(value)
    if kind == "worker":
        return _worker(value)
    raise BadMessage(f"not a message: {kind[:40]!r} is no kind of message, or holds something else")


def _checked(kind: str, value: Any, rules: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != rules.keys():
        raise BadMessage(f"not a message: a {kind} has {', '.join(rules)}")
    for name, rule in rules.items():
        if not rule(value[name]):
            raise BadMessage(f"not a message: {name} of a {kind} is {str(value[name])[:80]!r}")
    return value


def _job(value: Any) -> Any:
    from parl.remote import message

    fields = _checked("job", value, _JOB)
    cpus, gpus = fields.pop("n_cpu"), fields.pop("gpu")
    remove_job_address = fields.pop("remove_job_address")
    job = message.InitializedJob(**fields)
    job.remove_job_address = remove_job_address  # pyright: ignore[reportAttributeAccessIssue]
    if cpus is not None:
        job.allocated_cpu = message.AllocatedCpu(job.worker_address, cpus)
    if gpus is not None:
        job.allocated_gpu = message.AllocatedGpu(job.worker_address, gpus)
    return job


def _worker(value: Any) -> Any:
    from parl.remote import message

    fields = _checked("worker", value, _WORKER)
    address = fields["worker_address"]
    return message.InitializedWorker(
        address,
        [_job(job) for job in fields["jobs"]],
        message.AllocatedCpu(address, fields["n_cpu"]),
        message.AllocatedGpu(address, fields["gpu"]),
        fields["hostname"],
    )


def unpack_granted(content: bytes) -> Any:
    """A job that a master gives to a learner.

    Raises:
        BadMessage: for anything else.
    """
    from parl.remote import message

    job = unpack(content)
    if not isinstance(job, message.InitializedJob):
        raise BadMessage(f"the master gave a {type(job).__name__} for a job")
    if job.allocated_gpu is None or job.remove_job_address is None:  # pyright: ignore
        raise BadMessage("the master gave a job without its GPUs, or without its worker's address")
    return job


def unpack_for_page(content: bytes) -> Any:
    """A status that the monitor's page may show: its text is text there, and no HTML."""
    return _escaped(unpack(content))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {html.escape(name): _escaped(item) for name, item in value.items()}
    return value


# stands for the module `cloudpickle` where PARL's servers use no more of it than this
PICKLES = types.SimpleNamespace(dumps=pack, loads=unpack)


def imports_of(script: str) -> dict[str, Any]:
    """The `__builtins__` with which one of PARL's scripts is to be run.

    The monitor reads a status, and a job tells its worker of itself, by these messages. A job goes on
    to unpickle what its learner sends it.
    """
    import cloudpickle

    stand_ins = {
        "monitor.py": {"pickle": types.SimpleNamespace(loads=unpack_for_page)},
        "job.py": {"cloudpickle": types.SimpleNamespace(dumps=pack, loads=cloudpickle.loads)},
    }.get(script, {})

    def import_there(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if name in stand_ins:
            return stand_ins[name]
        return builtins.__import__(name, globals, locals, fromlist, level)

    return vars(builtins) | {"__import__": import_there}
