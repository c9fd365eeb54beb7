"""PARL's web pages at a real cluster with a run on it: whom they answer, what with, and how they look."""

from __future__ import annotations

import html
import http.client
import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import pytest

from parl_compat import local_clusters
from parl_compat.web import OPEN_LOG
from tests.browser import in_chromium, needs_chromium
from tests.conftest import cluster_processes, wait_until

pytestmark = [pytest.mark.xdist_group("xparl"), pytest.mark.slow]


def web_port(cluster: str, name: str) -> int:
    option = {"log_server.py": "port", "monitor.py": "monitor_port"}[name]
    own = cluster_processes(int(cluster.partition(":")[2]))
    for found in local_clusters.cluster_processes():
        if found.script == name and found.process.pid in own:
            return int(found.options[option])
    raise AssertionError(f"the cluster has no {name}")


def get(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_the_log_server_gives_the_logs_of_actors_and_nothing_else(xparl_cluster, tmp_path):
    port = web_port(xparl_cluster, "log_server.py")
    job_folder = Path.home() / ".parl_data" / "job"
    job_folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "stdout.log").write_text("of another folder")
    above = job_folder.parent / "stdout.log"
    made = not above.exists()
    above.touch()
    try:
        for name in (str(tmp_path), "..", ".", "", "%2e%2e", "a/../..", "a%00", "..%2f.."):
            for page in ("get-log", "download-log"):
                assert get(port, f"/{page}?job_id={name}").status == 400, name
    finally:
        if made:
            above.unlink()
    logs = [path.parent.name for path in job_folder.glob("127.0.0.1_*/stdout.log")]
    assert get(port, f"/get-log?job_id={logs[0]}").status == 200


@pytest.mark.parametrize("name", ["log_server.py", "monitor.py"])
def test_pages_of_other_sites_read_nothing(xparl_cluster, name):
    port = web_port(xparl_cluster, name)
    allowed = "Access-Control-Allow-Origin"
    path = "/get-log?job_id=none"
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::1]"):
        assert get(port, path, Origin=origin).getheader(allowed) is None
    own = "http://127.0.0.1:8210"  # the monitor's page
    assert get(port, path, Origin=own).getheader(allowed) == own
    assert get(port, path, Host="evil.example").status == 403  # a name that is made to mean us


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["log_server.py", "monitor.py"])
def test_another_user_of_the_machine_reads_nothing(xparl_cluster, name):
    port = web_port(xparl_cluster, name)
    # its own port is that of a connection which root closed: the kernel lists both
    program = (
        "import encodings.idna, http.client, os, socket\n"
        "def connect(source, there):\n"
        "    connection = socket.socket()\n"
        "    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    connection.bind(source)\n"
        "    connection.connect(there)\n"
        "    return connection\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    closed = connect(('127.0.0.1', 0), server.getsockname())\n"
        "    source = closed.getsockname()\n"
        "    there, _ = server.accept()\n"
        "    closed.close()\n"
        "    there.close()\n"
        "os.setuid(65534)\n"
        f"connection = http.client.HTTPConnection('127.0.0.1', {port}, timeout=10)\n"
        f"connection.sock = connect(source, ('127.0.0.1', {port}))\n"
        "connection.request('GET', '/')\n"
        "print(connection.getresponse().status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "403\n", done.stderr


def test_the_monitors_pages_load_nothing_from_elsewhere(xparl_cluster):
    port = web_port(xparl_cluster, "monitor.py")
    for path in ("/", "/workers", "/clients", "/logs?client_id=none"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        page = answer.read().decode()
        policy = answer.getheader("Content-Security-Policy") or ""
        connection.close()
        assert not re.search(r"(src|href)=\"(https?:)?//", page)
        assert policy.startswith(
            "default-src 'self' 'unsafe-inline' data:; connect-src 'self' http"
        )
        assert ("log-modal" in page) == (OPEN_LOG in page)


@needs_chromium
def test_chromium_shows_the_cluster_its_runs_and_their_jobs(xparl_cluster, run, tmp_path):
    monitor = f"http://127.0.0.1:{web_port(xparl_cluster, 'monitor.py')}"
    pages: list[str] = []

    def shows_the_run() -> bool:  # the monitor asks the master every 10 s
        pages.append(in_chromium(tmp_path, f"{monitor}/clients", "--dump-dom"))
        return "<td>2</td>" in pages[-1]

    wait_until(shows_the_run, 100, "the run's two actors")
    jobs = html.unescape(re.search(r"<a href=\"?(http://127[^\">]*)", pages[-1]).group(1))  # pyright: ignore
    assert jobs.startswith(f"{monitor}/logs?client_id=")

    def shows_both_jobs() -> bool:  # the page asks for its rows once it is there
        pages.append(in_chromium(tmp_path, jobs, "--dump-dom"))
        return "Showing 1 to 2 of 2 rows" in pages[-1]

    wait_until(shows_both_jobs, 60, "the rows of both jobs")
    assert len(re.findall(r"get-log\?job_id=127\.0\.0\.1_", pages[-1])) == 2
    workers = in_chromium(tmp_path, f"{monitor}/workers", "--dump-dom")
    assert "[CPU] 2/4" in workers  # vacant, of all
    assert workers.count("<canvas") == 3
    picture = tmp_path / "workers.png"
    in_chromium(tmp_path, f"{monitor}/workers", f"--screenshot={picture}")
    image = imageio.imread(picture)
    assert image.shape[:2] == (700, 1200)
    used, vacant = (0x7B, 0x68, 0xEE), (0x64, 0x95, 0xED)  # the colours of the pie of CPUs
    areas = [int((image[..., :3] == colour).all(-1).sum()) for colour in (used, vacant)]
    assert min(areas) > 1000
    assert 0.8 < areas[0] / areas[1] < 1.25  # two CPUs each
