"""Folders that are whole or not there: written aside, sealed by a manifest, put into place by one rename.

A kill or a power cut at any moment leaves either the old folder or the new one under a name, never a half of it; and
what a disk does to a folder later is seen, because the manifest knows the size and the SHA-256 of every file.

    output_dir/_unfinished/<token>/checkpoint-8   is written, sealed (files and folders on the disk, then the manifest)
    output_dir/checkpoint-8                       is where one rename puts it
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# Nothing takes this for a checkpoint: not `get_last_checkpoint`, not the rotation ("checkpoint-*"), not the Hub's
# upload of the output folder, which leaves out what begins with "_".
ASIDE = "_unfinished"
REPLACED, REMOVED = "replaced-", "removed"
CHUNK = 2**22  # bytes read at once
WINDOWS = os.name == "nt"


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Bring all files of a folder onto the disk and write its manifest: the facts, and size and SHA-256 of each file.

    Raises:
        OSError: the disk did not take it; the folder then has no manifest.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        entries = dict(zip((p.relative_to(folder).as_posix() for p in files), pool.map(_settled, files), strict=True))
    body = facts | {"files": entries}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(body | {"seal": _seal_of(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(inner)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `seal` wrote.

    Raises:
        ValueError: there is no manifest, or it is not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"it has no {MANIFEST}: it was not finished, or is not of this package, and nothing vouches for its files"
        )
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        sealed = body.pop("seal")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from None
    if sealed != _seal_of(body):
        raise ValueError(f"its {MANIFEST} is damaged: it is not as it was written")
    return body


def damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a sealed folder, in words; None where every file is as it was sealed.

    Args:
        contents: False compares names and sizes alone, for a folder whose bytes were read a moment ago.
    """
    if not folder.is_dir():
        return "there is no such folder"
    try:
        listed = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    wrong = _wrong_sizes(folder, listed)
    if contents and not wrong:  # reading everything is slow: only where the sizes are right
        with ThreadPoolExecutor() as pool:
            said = pool.map(lambda name: _wrong_content(folder / name, listed[name]["sha256"]), listed)
            wrong = [f"{name} {words}" for name, words in zip(listed, said, strict=True) if words]
    more = f" (and {len(wrong) - 3} files more)" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more if wrong else None


def publish(staged: Path, target: Path) -> None:
    """Put a sealed folder under its name by one rename; one of that name before it goes aside first, and away last.

    Raises:
        OSError: it could not be renamed; the folder under the name is the one from before.
    """
    aside = staged.with_name(REPLACED + target.name)
    was_there = target.exists()
    if was_there:
        os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError:
        if was_there:
            os.rename(aside, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder: aside first, so that half of it is never found under its name.

    Raises:
        OSError: it could not be moved aside, and is as it was.
    """
    aside = folder.parent / ASIDE / REMOVED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    os.rename(folder, aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        aside.parent.rmdir()  # unless something else is being written there


def clear_aside(run: Path, token: str = "*") -> list[str]:
    """Remove what a killed process left aside, after putting back what it had not yet replaced.

    Args:
        token: only what was written under this one.

    Returns:
        the names of what was there, for a message.

    Raises:
        OSError: something could not be put back; nothing is removed then.
    """
    found = sorted(run.joinpath(ASIDE).glob(f"{token}/*"))
    for old in replaced_aside(run, token):
        target = run / old.name.removeprefix(REPLACED)
        if not target.is_dir():
            os.rename(old, target)
    for folder in run.joinpath(ASIDE).glob(token):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        (run / ASIDE).rmdir()  # unless something else is being written there
    return [path.name for path in found]


def replaced_aside(run: Path, token: str = "*") -> list[Path]:
    """Checkpoints that were moved aside for new ones of their names, by a process that may not have come further."""
    return sorted(run.joinpath(ASIDE).glob(f"{token}/{REPLACED}*"))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder onto the disk, where the file system knows such a thing."""
    if WINDOWS:  # opens no folders, and has no such call
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(handle)


def _settled(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file that is on the disk from now on."""
    with path.open("r+b" if WINDOWS else "rb") as file:  # there only what may be written can be brought to the disk
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": _sha256(iter(lambda: file.read(CHUNK), b""))}


def _wrong_sizes(folder: Path, listed: dict[str, Any]) -> list[str]:
    wrong = []
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes instead of {entry['size']:,}")
    return wrong


def _wrong_content(path: Path, sha256: str) -> str | None:
    try:
        with path.open("rb") as file:
            same = _sha256(iter(lambda: file.read(CHUNK), b"")) == sha256
    except OSError as error:
        return f"cannot be read ({error})"
    return None if same else "is not as it was written (its SHA-256 differs)"


def _sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _seal_of(body: dict[str, Any]) -> str:
    return _sha256([json.dumps(body, sort_keys=True).encode()])
