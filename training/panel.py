"""The panel that a run shows on a terminal: redrawn in place, with what is said above it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from training.terminal import Shown

_EVERY_S = 0.5  # it is redrawn, so that it also follows the size of the window
_BAR = 28  # columns
_BLOCKS = "▁▂▃▄▅▆▇█"


class Panel(RenderHook):
    """Shows a run's state in a few lines, which stay at the bottom.

    The cursor is never hidden, and stands on the line below the panel. So however the process ends,
    it leaves a terminal in order. `rich.live` hides it, and takes a line that has become wider than
    the window for one row.

    Args:
        console: writes to a terminal.
        title: of the run.
    """

    def __init__(self, console: Console, title: str):
        self._console, self._title = console, title
        self._shown: Shown | None = None
        self._curve = Curve(24)
        self._evaluated: list[float] = []  # mean returns: of the last evaluation, of the best
        self._drawn: list[int] = []  # columns of each line that stands there
        self._lock = threading.RLock()
        self._streams = sys.stdout, sys.stderr
        # what others print, such as warnings, comes above the panel too
        sys.stdout, sys.stderr = (FileProxy(console, stream) for stream in self._streams)
        console.push_render_hook(self)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def show(self, shown: Shown) -> None:
        """Take in the state after an update; it is drawn soon."""
        with self._lock:
            self._shown = shown
            mean = shown.metrics.get("episode_return_mean")
            if mean is not None:
                self._curve.add(mean)
            score = shown.metrics.get("eval/return_mean")
            if score is not None:
                self._evaluated = [score, max([score, *self._evaluated[1:]])]

    def say(self, text: str) -> None:
        with self._lock:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Draw it for the last time, and leave it there."""
        with self._lock:  # its thread may wait for that, so nobody waits for the thread
            self._closed.set()
            sys.stdout, sys.stderr = self._streams
            try:
                self._console.print(Control())
            finally:
                self._console.pop_render_hook()

    def _redraw(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone: the next sentence says so
            while not self._closed.wait(_EVERY_S):
                with self._lock:
                    if not self._closed.is_set():
                        self._console.print(Control())  # nothing, which draws the panel anew

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Whatever is printed is printed in the place of the panel, and the panel below it."""
        with self._lock:
            return [self._erase(), *renderables, _Whole(self._draw())]

    def _erase(self) -> Control:
        # terminals break a line that has become wider than their window into several rows
        width = max(1, self._console.width)
        rows = sum(max(1, -(-columns // width)) for columns in self._drawn)
        line = (ControlType.ERASE_IN_LINE, 2)
        return Control(
            ControlType.CARRIAGE_RETURN, line, *((ControlType.CURSOR_UP, 1), line) * rows
        )

    def _draw(self) -> list[list[Segment]]:
        """The lines of the panel, as wide and as many as the window has room for."""
        options = self._console.options
        lines: list[list[Segment]] = []
        for row in self._rows():
            rendered = self._console.render_lines(row, options.update(no_wrap=True), pad=False)
            lines.append(Segment.adjust_line_length(rendered[0], options.max_width - 1, pad=False))
        lines = lines[: max(0, self._console.height - 1)]
        self._drawn = [Segment.get_line_length(line) for line in lines]
        return lines

    def _rows(self) -> Iterator[ConsoleRenderable]:
        if self._shown is None:
            return
        shown = self._shown
        line = "-" if self._console.options.ascii_only else "─"
        yield Text(f"{line * 2} {self._title} ".ljust(68, line), style="dim")
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(total=1.0, completed=shown.share, width=_BAR),
            f"{shown.share:4.0%}  {shown.step:,}/{shown.total:,} steps  ETA {shown.left}",
        )
        yield bar
        evaluated = ""
        if self._evaluated:
            evaluated = "   evaluated {:.1f}, best {:.1f}".format(*self._evaluated)
        curve = "" if self._console.options.ascii_only else f"  {self._curve}"
        yield _row("return", f"{shown.number('episode_return_mean', '.1f')}{curve}{evaluated}")
        waited, learned = (shown.metrics.get(f"time/{n}", 0.0) for n in ("sample_wait", "learn"))
        share = waited / max(waited + learned, 1e-9)
        yield _row(
            "speed",
            f"{shown.rate:,.0f} steps/s   raw {shown.number('raw_sps', ',.0f')}   waiting {share:.0%}",
        )
        losses = "the update was refused"
        if "loss/policy" in shown.metrics:
            losses = (
                f"policy {shown.number('loss/policy', '+.4f')}  value"
                f" {shown.number('loss/value', '.4f')}  KL {shown.number('approx_kl', '.4f')}"
                f"  entropy {shown.number('entropy', '.3f')}"
            )
        yield _row("losses", losses)
        yield _row(
            "samplers",
            f"{shown.number('samplers_alive', 'd')} alive  restarts {shown.number('restarts', 'd')}"
            f"  lag {shown.number('policy_lag_mean', '.1f')}{shown.others}",
        )


class Curve:
    """The means of a run so far, in a line of at most `width` blocks.

    Each block stands for as many values as the others. Where there is no room for one more, two
    become one.
    """

    def __init__(self, width: int):
        self._width, self._each = width, 1
        self._means: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) > self._width:
            pairs = zip(self._means[0::2], self._means[1::2], strict=False)
            left_over = self._means[-1] if len(self._means) % 2 else None
            self._means, self._each = [(a + b) / 2 for a, b in pairs], 2 * self._each
            if left_over is not None:
                self._sum, self._count = left_over * self._each / 2, self._each // 2

    def __str__(self) -> str:
        if not self._means:
            return ""
        least, most = min(self._means), max(self._means)
        scale = (len(_BLOCKS) - 1) / (most - least) if most > least else 0.0
        return "".join(_BLOCKS[round((mean - least) * scale)] for mean in self._means)


class _Whole:
    """Lines that are printed as they are."""

    def __init__(self, lines: list[list[Segment]]):
        self._lines = lines

    def __rich_console__(self, console: Console, options: object) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()


def _row(name: str, text: str) -> Text:
    return Text.assemble((f"{name:9}", "dim"), text)
