"""Files that a search holds locked while it lives. The operating system frees the locks when the process ends.

A lock shows that its process is alive, even from another container or a cloned machine. A host name, the id of a boot
and a pid are no evidence: cloned machines and restarted containers have them in common.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.study.file_locks import fcntl, locked_files

_KEPT = 30 * 24 * 3600.0
"""The seconds for which the file of a killed search is kept at least: it proves the death of that search."""

_LOCAL_FILE_SYSTEMS = re.compile(
    "apfs|bcachefs|btrfs|exfat|ext[234]|f2fs|hfs|jfs|msdos|ntfs3?|overlay(fs)?|ramfs|reiserfs|rootfs|tmpfs|vfat|xfs|zfs"
)
"""Local file systems. On a file system that is not listed, a lock that seems free may be held on another machine."""


class SessionFiles:
    """The locked files of one search: one on this machine, and one beside the storage's file, if the storage is a file.

    Args:
        beside: The folder beside the storage's file, where other machines and containers find the session's file.
    """

    def __init__(self, session: str, beside: pathlib.Path | None) -> None:
        self._name = f"{session}.alive"
        self._beside = beside
        self._files: dict[pathlib.Path, int] = {}

    def open(self) -> None:
        """Create and lock the files. A folder in which a file cannot be created or locked is skipped."""
        for folder in {each for each in (_local_folder(), self._beside) if each is not None}:
            try:
                self._files[folder / self._name] = _create_locked(folder, self._name)
            except OSError as error:
                logger.debug("The folder %s cannot show that this search is alive: %s", folder, error)

    @property
    def evidence(self) -> dict[str, Any]:
        """The keys and values by which other processes find the files; empty if there are no files."""
        return {"file": self._name, "folder": str(_local_folder() or "")} if self._files else {}

    def is_held(self, evidence: Mapping[str, Any]) -> bool | None:
        """Return whether a process holds the files of another search; `None` if that cannot be known from here."""
        name = os.path.basename(str(evidence.get("file", "")))
        folders = [evidence.get("folder"), self._beside]
        held = [_is_held(pathlib.Path(folder) / name) for folder in folders if name and folder]
        return True if True in held else False if False in held else None

    def close(self, *, is_clean: bool) -> None:
        """Release the locks. Another thread may be in `open` or `close`: each file is released once.

        Args:
            is_clean: Whether the search has left no trial running. If the search has left a trial running, the files
                stay, as evidence that the search is dead.
        """
        while self._files:
            try:
                path, file = self._files.popitem()
            except KeyError:  # another thread has released the last file
                return
            if is_clean:
                with contextlib.suppress(OSError):  # the folder cannot be written any more
                    path.unlink(missing_ok=True)
            locked_files.discard(file)
            os.close(file)
            with contextlib.suppress(OSError):  # the folder is not empty, or is gone
                path.parent.rmdir()


def folder_beside(path: pathlib.Path | None) -> pathlib.Path | None:
    """Return the folder for session files beside the file of a storage; `None` if the storage is not in a file."""
    return path.with_name(f"{path.name}.sessions") if path is not None else None


def _local_folder() -> pathlib.Path | None:
    """Return a folder of this machine and user, which outlives a restart of the machine where that is possible.

    Return `None` if no folder can be written, as in a container with a read-only file system.
    """
    root = pathlib.Path("/var/tmp")  # noqa: S108 - the files have unique names, and are created with O_EXCL
    try:
        if not os.access(root, os.W_OK):
            root = pathlib.Path(tempfile.gettempdir())
    except OSError:
        return None
    return root / f"optuna-flyte-dsl-{os.getuid() if hasattr(os, 'getuid') else 'sessions'}"


def _create_locked(folder: pathlib.Path, name: str) -> int:
    if fcntl is None:
        raise OSError("this system has no flock")
    while True:
        folder.mkdir(exist_ok=True)
        _remove_old(folder)
        try:
            file = os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            break
        except FileNotFoundError:  # another search has just removed the empty folder
            continue
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        (folder / name).unlink()
        raise
    locked_files.add(file)
    return file


def _is_held(path: pathlib.Path) -> bool | None:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):  # the file does not exist, or this system has no flock
        return None
    return False if _is_local(path) else None


def _is_local(path: pathlib.Path) -> bool:
    """Return whether a file is on a file system that this machine uses alone."""
    import psutil

    place = path.resolve()
    kinds = {
        mount.mountpoint: mount.fstype
        for mount in psutil.disk_partitions(all=True)
        if place.is_relative_to(mount.mountpoint)
    }
    return bool(kinds) and _LOCAL_FILE_SYSTEMS.fullmatch(kinds[max(kinds, key=len)]) is not None


@functools.cache
def _remove_old(folder: pathlib.Path) -> None:
    """Remove old files of killed searches: once in a process, because a folder may hold thousands of them."""
    for path in folder.glob("*.alive"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT and _is_held(path) is False:
                path.unlink()
