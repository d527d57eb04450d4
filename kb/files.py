"""Write files so that a kill at any moment leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def replace_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Put `data` at `path` in one step; folders are made, the mode of an old file is kept.

    Args:
        path: Where; a symbolic link is itself replaced.
        data: All of the new content.
        sync: Wait until it is on disk, so that a power cut does no harm either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Make `target` hold `files`, by their paths within it, and nothing else.

    Files that differ are replaced one by one, then what no longer belongs is removed: a kill leaves
    old files and new ones, each of them whole. For folders that can be made again: not synced.
    """
    for name, data in files.items():
        path = target / name
        if not path.is_file() or path.read_bytes() != data:
            replace_file(path, data, sync=False)
    # Deepest first, so that a folder is empty when its turn comes.
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in files:
            path.unlink()
