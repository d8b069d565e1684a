"""Files from the world that went wrong once: $DINOVIZ_CASES, or ../shared/cases beside the checkout; never copied."""

from __future__ import annotations

import os
from pathlib import Path

from dinoviz.images import SUFFIXES
from tests.hostile.generate import Case, Corpus

CASES = Path(os.environ.get("DINOVIZ_CASES") or Path(__file__).resolve().parents[4] / "shared" / "cases")
VIDEOS, LISTS = (".mp4", ".mov", ".webm"), (".csv", ".txt")


def write(corpus: Corpus) -> None:
    if not CASES.is_dir():
        corpus.skipped.append(f"files of real life: there is no folder {CASES}; set DINOVIZ_CASES")
        return
    for path in sorted(CASES.rglob("*")):
        if group := _group(path):
            name = f"real_life/{path.relative_to(CASES)}"
            corpus.cases.append(Case(name, "real_life", group, str(path), "either"))


def _group(path: Path) -> str | None:
    """For which doors it is; None for what belongs to a folder that is given as a whole."""
    ending = path.suffix.lower()
    if path.is_dir():
        if (path / "config.json").is_file():
            return "model"
        return "pictures" if path.parent == CASES and path.name[:1].isdigit() else None
    if path.parent != CASES:
        return None
    if ending in VIDEOS:
        return "clip"
    if ending in LISTS:
        return "list"
    if "mask" in path.name or "labels" in path.name:
        return "mask"
    return "image" if ending in (*SUFFIXES, ".heic") else None
