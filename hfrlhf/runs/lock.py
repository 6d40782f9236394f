"""One run at a time in an output folder: a requeued job and the one it replaces must not take each other's checkpoints.

The claim is the operating system's lock on a file in the folder, as `filelock` takes it (`flock`, on Windows
`LockFileEx`); the system lets go of it when the process ends, however it ends: no claim of a dead process is ever in
the way. What is ours around it: `filelock.FileLock` does not say who holds the file, leaves it in the folder, and where
the file system knows no locks falls back to a marker file, which a killed process would leave behind.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor
from transformers.utils import logging

from .agreement import Agreement

logger = logging.get_logger(__name__)

OWNER = "_owner.json"  # what begins with "_" is not uploaded to the Hub
WINDOWS = os.name == "nt"
UNREAD = b" "  # Windows locks the first byte for readers too: who holds the file stands behind it


class FolderInUse(RuntimeError):
    """Another process trains in this output folder."""


def claim(run: Path) -> int | None:
    """Claim a folder, which is made where it is missing.

    Returns:
        what `release` takes; None, after a warning, where the file system knows no such claims.

    Raises:
        FolderInUse: another process holds it; the message says which.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        handle = _held(run)
        while not _is_still(handle, run / OWNER):  # its owner had just released, and deleted, it
            os.close(handle)
            handle = _held(run)
    except OSError as error:
        logger.warning(
            f"{run} cannot be claimed ({error}): nothing keeps a second run out of it. See to it that none is started "
            "there"
        )
        return None
    with suppress(OSError):  # who it is, for the others to read; a full disk is no reason to stop
        os.ftruncate(handle, 0)
        os.write(handle, UNREAD + json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    return handle


def release(run: Path, handle: int) -> None:
    """Give back what `claim` took; also for processes that were forked meanwhile."""
    if not WINDOWS:  # while it is ours: a moment later the name may be another's
        _delete(run / OWNER)
    unlock_descriptor(handle)
    os.close(handle)
    if WINDOWS:  # which deletes no file that a process, this one or the next, has open
        _delete(run / OWNER)


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _held(run: Path) -> int:
    handle = os.open(run / OWNER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if lock_descriptor(handle, blocking=False):
            return handle
        raise FolderInUse(
            f"another process trains in {str(run)!r} ({_owner(handle) or 'it has not said which'}); wait for its end "
            "and go on by `resume_from_checkpoint=True`, or choose another `output_dir`"
        )
    except BaseException:
        os.close(handle)
        raise


def _owner(handle: int) -> str:
    with suppress(OSError):
        os.lseek(handle, len(UNREAD), os.SEEK_SET)
        return os.read(handle, 500).decode(errors="replace").strip()
    return ""


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


class RunLock:
    """The first process of a run holds the output folder while it trains.

    Args:
        agreement: the processes of the run.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self._holds = False

    @contextmanager
    def held(self, run: Path) -> Iterator[None]:
        """Hold the folder; within a block that does so already, nothing happens. All processes come here together.

        Raises:
            FolderInUse: on every process.
        """
        if self._holds:
            yield
            return
        handle, refused = None, None
        if self.agreement.is_first:
            try:
                handle = claim(run)
            except FolderInUse as error:
                refused = str(error)
        if refused := self.agreement.from_all(refused)[0]:
            raise FolderInUse(refused)
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            if handle is not None:
                release(run, handle)
