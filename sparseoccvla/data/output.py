"""Result folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparseoccvla.errors import InputError

# What only writing can raise: a full disk, a quota, a limit on the size of a file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(InputError):
    """A result can't be written where it was asked for; what lay there before still lies there."""


@contextmanager
def new_folder(target: Path, is_ours: Callable[[Path], bool], needed_bytes: int = 0) -> Iterator[Path]:
    """A work folder that becomes `target` when the block ends well, and goes away when it does not.

    The work folder is a hidden sibling, so that the last step is a rename on one disk. One left behind
    by a killed process is cleared away; one that another process still fills is respected.

    Args:
        target: must not exist, be an empty folder, or satisfy `is_ours`; then it is replaced at the end.
        is_ours: whether an existing folder was made by the same command and may be replaced.
        needed_bytes: refuse before any work when the disk has less room.

    Yields:
        An empty folder named as `target`, on the same disk.

    Raises:
        OutputError: a foreign `target`, another process at work, a full or unwritable disk.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} exists and is no folder; choose another --out")
    if target.exists() and any(target.iterdir()) and not is_ours(target):
        raise OutputError(
            f"{target} exists and was not made by this command, so it is left alone; "
            "choose another --out or move it away"
        )
    nursery = target.parent / f".{target.name}.partial"
    try:
        nursery.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make {nursery}: {error.strerror}; choose another --out") from error
    with exclusive(nursery, target):
        try:
            _clear(nursery)
            _check_room(nursery, needed_bytes)
            work = nursery / target.name
            work.mkdir()
            yield work
            _replace(target, work, nursery / "replaced")
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutputError(
                f"no room for {target}: {error.strerror}; nothing of it was left behind. "
                "Make room or choose another --out"
            ) from error
        finally:
            shutil.rmtree(nursery)


@contextmanager
def exclusive(folder: Path, target: Path) -> Iterator[None]:
    """Keep other processes from `folder` for the length of the block.

    Raises:
        OutputError: one is there; it is said to be writing `target`.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another process is writing {target} right now; wait for it") from error
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for leftover in folder.iterdir():
        shutil.rmtree(leftover)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OutputError(
            f"{folder.parent} has {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB are needed; "
            "make room or choose another --out"
        )


def _replace(target: Path, work: Path, aside: Path) -> None:
    if target.exists():
        target.rename(aside)
    try:
        work.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
