"""Writes hostile and troublesome files: the same ones each time, a few megabytes in all.

    python -m tests.hostile.generate FOLDER      write them, and index.json, which says what each is for

A kind of file is a module in `tests.hostile.kinds` with `write(corpus)`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

SEED = 12
# What a door should make of a file. "either": a result or a sentence, whichever the reader prefers.
Expected = Literal["right", "sentence", "either"]

KINDS = (
    "images",
    "names",
    "masks",
    "archives",
    "lists",
    "videos",
    "models",
    "probes",
    "runs",
    "depth_data",
    "marks",
    "settings",
    "real_life",
)


@dataclass(frozen=True)
class Case:
    """A file or folder. group: cases that are for the same doors, see `doors.DOORS`."""

    name: str
    kind: str
    group: str
    path: str
    expected: Expected


class Corpus:
    """Where kinds of files are written to, and the record of what each is for.

    random: of this kind alone, so that a kind does not change with the ones before it.
    model: a tiny network with random weights in transformers' format, that the commands encode with.
    """

    def __init__(self, root: Path, seed: int = SEED):
        self.root, self.seed, self.cases = root, seed, []
        self.skipped: list[str] = []
        self.model = root / "good" / "model"

    def begin(self, kind: str) -> None:
        """All that is added from now on is of this kind."""
        self.kind = kind
        self.random = np.random.default_rng([self.seed, KINDS.index(kind)])
        (self.root / kind).mkdir(parents=True, exist_ok=True)

    def path(self, name: str | bytes) -> Path:
        """Where a file or folder of the current kind goes."""
        return self.root / self.kind / os.fsdecode(name)

    def add(self, group: str, name: str | bytes, content: bytes | None = None, expected: Expected = "either") -> Path:
        """Record a case; content: of the file, or None where it is written by the caller. Returns its path."""
        path = self.path(name)
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        shown = os.fsencode(name).decode(errors="backslashreplace")
        self.cases.append(Case(f"{self.kind}/{shown}", self.kind, group, os.fsdecode(path), expected))
        return path

    def folder(self, group: str, name: str, expected: Expected = "either") -> Path:
        """The same for a new, empty folder."""
        path = self.add(group, name, None, expected)
        path.mkdir(parents=True)
        return path


def picture(width: int = 96, height: int = 72) -> Image.Image:
    """A cat, mode RGB: what is right about a file that is troublesome."""
    from training.data.demo import demo_picture

    return demo_picture("chelsea.png").resize((width, height))


def cuts(content: bytes, shares: Iterable[float] = (0.02, 0.2, 0.5, 0.9)) -> dict[str, bytes]:
    """The beginnings of a file by what to call them, the last lacks one byte."""
    found = {f"cut{round(100 * share):02}": content[: round(share * len(content))] for share in shares}
    return {**found, "cut-last-byte": content[:-1]}


def spoilt(content: bytes, random: np.random.Generator, count: int = 8) -> bytes:
    """The same file with a few bytes changed."""
    changed = bytearray(content)
    for at in random.integers(4, len(content), count):
        changed[at] ^= int(random.integers(1, 256))
    return bytes(changed)


def deep(levels: int = 100_000, inside: str = "") -> str:
    """JSON of lists in lists."""
    return "[" * levels + inside + "]" * levels


def generate(root: Path, kinds: Iterable[str] = KINDS, seed: int = SEED, *, models: bool = True) -> Corpus:
    """Write all files of some kinds below a folder, which is made anew.

    models: also a model and a probe that are right, which commands need, and some kinds.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    corpus = Corpus(root.resolve(), seed)
    _write_good(corpus, models)
    for kind in kinds:
        corpus.begin(kind)
        importlib.import_module(f"tests.hostile.kinds.{kind}").write(corpus)
    names = [case.name for case in corpus.cases]
    assert len(names) == len(set(names)), "two cases have one name"
    (corpus.root / "index.json").write_text(json.dumps([asdict(case) for case in corpus.cases], indent=1))
    return corpus


def _write_good(corpus: Corpus, models: bool) -> None:
    """What hostile files are given together with: a picture, its mask, a clip, a model and a probe that are right."""
    from tests.hostile.kinds.models import write_good as write_model
    from tests.hostile.kinds.probes import write_good as write_probe
    from tests.hostile.kinds.videos import clip

    folder = corpus.root / "good"
    folder.mkdir()
    picture().save(folder / "picture.png")
    mask = np.zeros((72, 96), np.uint8)
    mask[20:50, 30:70] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "clip.mp4").write_bytes(clip())
    if models:
        write_model(corpus.model)
        write_probe(folder / "probe.safetensors", corpus.model)


def size_of(folder: Path) -> int:
    """Bytes on the disk; sparse parts and links do not count."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    about = {each.st_ino: each for each in (file.lstat() for file in files)}
    return sum(min(each.st_size, each.st_blocks * 512) for each in about.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.generate", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="is emptied first")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    corpus = generate(options.folder, seed=options.seed)
    print(f"{len(corpus.cases)} cases, {size_of(corpus.root) / 1e6:.1f} MB on the disk, in {corpus.root}")
    for reason in corpus.skipped:
        print(f"skipped: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
