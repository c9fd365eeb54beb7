"""The project's own source files: where they lie, what they hold, and one hash over all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "cluster", "common", "distributions", "envs", "evaluation", "learning", "networks",
    "parl_compat", "settings", "training",
)  # fmt: skip


def sources() -> dict[str, bytes]:
    """Every file that the project runs on, by its path below the project's root."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("presets/**/*.yaml")]
    for folder in FOLDERS:
        paths += (ROOT / folder).rglob("*.py")
    # an editor's lock on a file is a link, such as .#agent.py, that leads nowhere
    paths = [path for path in sorted(paths) if not path.name.startswith(".")]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}


def digest(files: dict[str, bytes]) -> str:
    """16 hexadecimal digits of the SHA-256 over names and contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:16]
