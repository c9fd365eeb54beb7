"""What a tracker is: where a run's metrics can be looked at while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Settings = Mapping[str, Any]
"""The settings of a run, as JSON can hold them."""


class TrackerEnded(Exception):
    """A tracker takes nothing any more. Says why, and what can be done about it."""


class Tracker(Protocol):
    """Shows what a run reports. It has been given the run's settings.

    A method raises OSError where the disk takes no more, which may pass, or `TrackerEnded`.

    Attributes:
        name: as `--track` names it.
        page: the command that shows its curves, of this run and of those beside it.
    """

    name: str
    page: str

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take in finite numbers by their tags, `group/name`, at an environment step."""
        ...

    def film(self, path: Path, step: int) -> None:
        """Take in a film, an mp4, of the policy at an environment step."""
        ...

    def reopen(self) -> None:
        """Go on in a new file, as the run's folder was made anew."""
        ...

    def close(self) -> None:
        """Take in what waits, and end."""
        ...
