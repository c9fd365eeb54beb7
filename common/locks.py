"""The kernel's locks of files, which end with their process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import time
from typing import IO

# of file systems without locks, such as some network file systems
_NONE_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_LOOKS_EVERY_S = 0.05


def lock(file: IO) -> None:
    """Lock a file, as long as it is open. On a file system without locks nothing is locked.

    Raises:
        BlockingIOError: where another process has it.
        OSError: where the file system refuses it otherwise; without the file's name.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise


def lock_within(file: IO, seconds: float) -> bool:
    """Wait so long [s] for the lock of a file; whether it was given: a process that has it may be stopped."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock(file)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOKS_EVERY_S)
        except OSError:  # such as of NFS, which locks no file that was opened to be read
            return False
        else:
            return True
