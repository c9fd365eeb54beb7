"""Add samplers to a run: `python -m cluster.store sample --store redis://HOST:PORT/DB`."""

from __future__ import annotations

import os
import sys

from common.sources import ROOT

# modules of the folder worked in must hide none of the project's
sys.path[:] = [str(ROOT), *(path for path in sys.path if path not in ("", os.getcwd(), str(ROOT)))]

import argparse  # noqa: E402
import contextlib  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from types import FrameType  # noqa: E402

from cluster.store.local import LocalSamplers  # noqa: E402
from cluster.store.make import run_of  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.terminal import print_anything  # noqa: E402
from settings.config import ConfigError  # noqa: E402

_LOOKS_EVERY_S = 0.2


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.store",
        description="Add samplers to a run whose trainers share a store. The password is in"
        " DPPO_REDIS_PASSWORD.",
    )
    command = parser.add_subparsers(required=True).add_parser(
        "sample", help="step environments of the run until it ends"
    )
    command.add_argument(
        "--store", required=True, metavar="URL", help="redis://[USER@]HOST:PORT/DB"
    )
    command.add_argument("--run", metavar="RUN_ID", help="default: the only run of the store")
    command.add_argument("--samplers", type=int, default=1, help="how many processes")
    command.add_argument("--store_timeout", type=float, default=60.0, metavar="SECONDS",
                         help="how long the store, or the run in it, is waited for")  # fmt: skip
    command.add_argument("--trust", action="store_true",
                         help="import the class that the run's settings name (module:Class)")  # fmt: skip
    return parser.parse_args()


def say(text: str) -> None:
    print(text, flush=True)


def sample(given: argparse.Namespace) -> None:
    """Run samplers until the run ends.

    Raises:
        UserError: where they cannot go on.
    """
    if given.samplers < 1:
        raise ConfigError(f"samplers is {given.samplers}, but must be at least 1")
    with contextlib.closing(run_of(given.store, given.run, say, given.store_timeout)) as store:
        url, run = store.link.url, store.run
    samplers = LocalSamplers(url, run, given.samplers, given.trust, given.store_timeout, say)
    say(f"{given.samplers} samplers for the run {run} in the store at {url}")
    try:
        while samplers.look():
            time.sleep(_LOOKS_EVERY_S)
    finally:
        samplers.close()


def end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    print_anything()
    given = arguments()
    signal.signal(signal.SIGTERM, end)
    try:
        sample(given)
    except UserError as error:
        print(f"python -m cluster.store: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
