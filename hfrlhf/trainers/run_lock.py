"""One run at a time in an output folder: a requeued job and the one it replaces must not take each other's checkpoints.

The claim is an `flock` on a file in the folder. The kernel lets go of it when the process ends, however it ends: no
claim of a dead process is ever in the way.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

OWNER = "_owner.json"  # what begins with "_" is not uploaded to the Hub


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
    while True:
        try:
            handle = os.open(run / OWNER, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            _warn(run, error)
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = os.read(handle, 500).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise FolderInUse(_in_use(run, said)) from None
            _warn(run, error)
            return None
        if _is_still(handle, run / OWNER):
            break
        os.close(handle)  # its owner has just released, and deleted, it
    with suppress(OSError):  # who it is, for the others to read; a full disk is no reason to stop
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    return handle


def release(run: Path, handle: int) -> None:
    """Give back what `claim` took; also for processes that were forked meanwhile."""
    with suppress(OSError):
        (run / OWNER).unlink()
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _in_use(run: Path, owner: str) -> str:
    return (
        f"another process trains in {str(run)!r} ({owner or 'it has not said which'}); wait for its end and go on by "
        "`resume_from_checkpoint=True`, or choose another `output_dir`"
    )


def _warn(run: Path, error: OSError) -> None:
    logger.warning(
        f"{run} cannot be claimed ({error}): nothing keeps a second run out of it. See to it that none is started there"
    )


class RunLock:
    """Mixin of a trainer with `_from_all`: its first process holds the output folder while it trains."""

    _holds = False

    @contextmanager
    def alone(self: Any) -> Iterator[None]:
        """Hold the folder; within a block that does so already, nothing happens. All processes come here together.

        Raises:
            FolderInUse: on every process.
        """
        if self._holds:
            yield
            return
        run, handle, refused = Path(str(self.args.output_dir)), None, None
        if self.is_world_process_zero():
            try:
                handle = claim(run)
            except FolderInUse as error:
                refused = str(error)
        if refused := self._from_all(refused)[0]:
            raise FolderInUse(refused)
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            if handle is not None:
                release(run, handle)


def alone(train: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a trainer that holds the output folder while it runs."""

    @wraps(train)
    def held(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.alone():
            return train(self, *args, **kwargs)

    return held
