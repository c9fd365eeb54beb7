"""Benchmarks are run by hand, so nothing else would tell that one of them no longer begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# it is run as `python -m benchmarks.store_crowd`, and the test of conservation imports it
MODULES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "store_crowd"
)


def test_every_benchmark_can_be_imported_from_any_folder(tmp_path: Path):
    assert len(MODULES) > 20
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import {', '.join(MODULES)}"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
