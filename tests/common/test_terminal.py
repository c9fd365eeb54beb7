"""What is printed where the terminal's encoding lacks characters of it, and how its end is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT


def test_characters_that_an_encoding_lacks_are_printed_as_numbers():
    code = "from common.terminal import print_anything; print_anything(); print('\\u2500 \\xe9\\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"\\u2500 \xe9\\udcff\n", b"")


def test_a_second_signal_does_not_break_off_what_the_first_one_cleans_up():
    code = """
import signal, time
from common.terminal import exit_when_asked

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests have inherited
exit_when_asked()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("cleaning", flush=True)
    time.sleep(0.5)
    print("cleaned", flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in ("ready", "cleaning"):
            assert process.stdout.readline() == f"{line}\n"
            process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == "cleaned\n"
    assert process.returncode == 128 + signal.SIGHUP
