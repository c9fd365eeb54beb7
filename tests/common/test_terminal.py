"""What is printed where the terminal's encoding lacks characters of it."""

from __future__ import annotations

import os
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
