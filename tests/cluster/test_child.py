from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import psutil
import pytest

from cluster.child import Child, ChildEnded, close_all
from tests.conftest import ROOT, still_running, wait_until

MODULE = "tests.cluster.obedient_child"


@pytest.fixture
def child():
    child = Child(MODULE)
    yield child
    child.kill()


def test_a_child_answers_and_ends_when_it_is_closed(child):
    assert child.what_became_of_it() is None
    child.send(b"echo hello")
    assert child.receive(60) == b"hello"
    child.send(b"leads")
    assert child.receive(60) == b"True"  # of its own: Ctrl-C is the parent's to handle
    child.close()
    assert child.what_became_of_it() == "ended with code 0"


def test_a_message_of_many_bytes_comes_whole(child):
    child.send(b"echo " + b"x" * 3_000_000)
    assert len(child.receive(60)) == 3_000_000


def test_half_an_answer_is_none_and_makes_nobody_wait(child):
    child.send(b"echo hello")
    assert child.receive(60) == b"hello"
    child.send(b"half")
    wait_until(lambda: bool(select.select([child], [], [], 0)[0]), 30, "the half")
    assert not child.poll(0.1)
    with pytest.raises(TimeoutError):
        child.receive(0.1)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildEnded, match="was killed by signal 9"):
        child.receive(60)


def test_a_child_that_reads_nothing_is_ended(child, monkeypatch):
    monkeypatch.setattr("cluster.child.SEND_TIMEOUT_S", 0.2)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildEnded, match=r"has read nothing for 0.2 s"):
        child.send(b"echo " + b"x" * 3_000_000)
    assert child.what_became_of_it() == "was killed by signal 9"


def test_a_child_has_many_variables(monkeypatch):
    for name in ("A", "B", "C"):
        monkeypatch.setenv(f"LONG_{name}", name * 120_000)
    child = Child(MODULE)
    child.send(b"variable LONG_C")
    assert child.receive(60) == b"C" * 120_000
    child.close()


def test_to_wait_for_an_answer_has_an_end(child):
    assert not child.poll()
    with pytest.raises(TimeoutError, match=rf"process {child.pid} has not answered within 0.1 s"):
        child.receive(0.1)


def test_how_a_child_ended_is_said(child):
    child.send(b"end 3")
    with pytest.raises(ChildEnded, match=rf"process {child.pid} ended with code 3"):
        child.receive(60)
    assert child.what_became_of_it() == "ended with code 3"
    with pytest.raises(ChildEnded, match="ended with code 3"):
        child.send(b"echo hello")


def test_a_killed_child_is_said_to_be_killed(child):
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildEnded, match="was killed by signal 9"):
        child.receive(60)


def test_what_a_killed_child_has_started_ends_with_it(child):
    child.send(b"start sleep 600")
    started = psutil.Process(int(child.receive(60)))
    child.kill()
    assert psutil.wait_procs([started], timeout=30)[1] == []


@pytest.mark.parametrize("ends", [b"end 3", b"close"])
def test_what_a_child_leaves_behind_is_ended(child, ends):
    child.send(b"start sleep 600")
    started = psutil.Process(int(child.receive(60)))
    if ends == b"close":
        child.close()
    else:
        child.send(ends)
        with pytest.raises(ChildEnded, match="ended with code 3"):
            child.receive(60)
    assert psutil.wait_procs([started], timeout=30)[1] == []


def test_a_child_that_does_not_end_by_itself_is_killed(child):
    os.kill(child.pid, signal.SIGSTOP)
    close_all([child], timeout=0.1)
    assert child.what_became_of_it() == "was killed by signal 9"


def test_children_outlive_their_nursery_and_another_one_forks_the_next(child):
    child.send(b"echo hello")
    assert child.receive(60) == b"hello"
    first = psutil.Process(child.pid).parent()
    assert first is not None
    first.kill()
    first.wait(30)
    child.send(b"echo again")
    assert child.receive(60) == b"again"
    other = Child(MODULE)
    other.send(b"echo hello")
    assert other.receive(60) == b"hello"
    assert psutil.Process(other.pid).ppid() != first.pid
    other.close()
    assert child.what_became_of_it() is None
    child.close()
    assert not psutil.pid_exists(child.pid)


def test_a_module_that_cannot_be_imported_is_a_child_that_has_ended():
    child = Child("tests.no_such_module")
    with pytest.raises(ChildEnded, match="could not be started"):
        child.receive(60)
    child.kill()


@pytest.mark.parametrize("niceness", [0, 3])
def test_niceness_is_added_and_makes_a_batch_process(niceness):
    child = Child(MODULE, niceness=niceness)
    child.send(b"niceness")
    assert int(child.receive(60)) == min(19, os.nice(0) + niceness)
    child.send(b"scheduler")
    assert int(child.receive(60)) == (os.SCHED_BATCH if niceness else os.sched_getscheduler(0))
    child.close()


def test_a_module_in_the_folder_worked_in_does_not_hide_the_projects_own(tmp_path, monkeypatch):
    for name in ("rollout", "common", "socket"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    child = Child(MODULE)
    child.send(b"where rollout")
    assert child.receive(60).decode() == str(ROOT / "rollout.py")
    child.close()


@pytest.mark.parametrize("message", [b"echo", b"sleep 600"])
def test_a_child_ends_with_its_parent_and_so_does_what_it_has_started(message):
    code = (
        f"from cluster.child import Child; child = Child({MODULE!r}); child.send(b'start sleep 600');"
        f" started = child.receive(60).decode(); child.send({message!r});"
        f" print(child.pid, started, flush=True); input()"
    )
    middle = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert middle.stdout is not None
    child, started = map(psutil.Process, map(int, middle.stdout.readline().split()))
    nursery = child.parent()
    assert nursery is not None
    assert nursery.pid != middle.pid
    middle.kill()
    wait_until(lambda: not still_running([child, nursery, started]), 30, "all to end")
    middle.communicate()


def test_a_nursery_whose_learner_ended_with_an_answer_unread_says_nothing(tmp_path):
    (tmp_path / "idle.py").write_text("def serve(): pass\n")
    program = """
import os, select
from cluster.nursery import NURSERY
NURSERY.fork("idle", [], 0)
select.select([NURSERY._control], [], [])  # the answer has come
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # stderr ends when the nursery has ended


@pytest.mark.parametrize("threads", [0, 1])
def test_a_process_without_threads_is_copied_for_its_nursery(tmp_path, threads):
    """The copy has the imports, and none of the files; a process with threads has no whole copy."""
    (tmp_path / "only_once.py").write_text("print('imported')")
    program = f"""
import os, sys, threading, time
from cluster.child import Child
from cluster.nursery import NURSERY
secret = os.open(__file__, os.O_RDONLY)
for _ in range({threads}):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
NURSERY.split_off(["only_once", {MODULE!r}])
child = Child({MODULE!r})
child.send(b"where only_once")
assert child.receive(60).decode().endswith("only_once.py")
child.send(b"leads")
assert child.receive(60) == b"True"
print("files", os.path.realpath(__file__) in
      [os.path.realpath(f"/proc/{{child.pid}}/fd/{{fd}}") for fd in os.listdir(f"/proc/{{child.pid}}/fd")])
child.close()
os.close(secret)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["False", "files", *["imported"] * (1 + threads)]
