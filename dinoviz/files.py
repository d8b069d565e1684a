"""Files that are there whole or not at all, also after a kill -9."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` in one step at the end; it does not if something is raised meanwhile."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)
