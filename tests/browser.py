"""A real browser, for the pages that people look at."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.conftest import wait_until

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--no-first-run", "--window-size=1200,700",
)  # fmt: skip


def in_chromium(folder: Path, address: str, output: str) -> str:
    """What Chromium prints of a page, which it has shown for some seconds."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}",
         "--virtual-time-budget=4000", output, address],
        timeout=100, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Page:
    """A page that Chromium shows, asked by the DevTools protocol."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._asked = 0

    def go_to(self, address: str) -> None:
        self._ask("Page.navigate", url=address)

    def wait_for(self, *texts: str) -> None:
        """Wait until the page shows all of these texts."""
        wait_until(lambda: all(text in self.text for text in texts), 60, ", ".join(texts))

    @property
    def text(self) -> str:
        return self.value("document.body ? document.body.innerText : ''")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page's own language."""
        return self._ask("Runtime.evaluate", expression=expression)["result"].get("value")

    def picture(self) -> np.ndarray:
        """What it looks like: [height, width, 3] uint8."""
        png = base64.b64decode(self._ask("Page.captureScreenshot")["data"])
        return imageio.imread(png)[..., :3]

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        request = {"id": self._asked, "method": method, "params": parameters}
        self._connection.send(json.dumps(request))
        while (answer := json.loads(self._connection.recv(60))).get("id") != self._asked:
            pass  # an event
        return answer["result"]


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """An empty page of a Chromium that has its files in a folder."""
    assert CHROMIUM is not None
    profile = folder / "profile"
    browser = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        written = profile / "DevToolsActivePort"
        wait_until(lambda: written.exists() and "\n" in written.read_text(), 60, "Chromium")
        port, path = written.read_text().split("\n")[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as connection:
            opened = Page(connection)._ask("Target.createTarget", url="about:blank")
        address = f"ws://127.0.0.1:{port}/devtools/page/{opened['targetId']}"
        with connect(address, max_size=None) as connection:
            yield Page(connection)
    finally:
        browser.kill()
        browser.wait()
