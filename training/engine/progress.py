"""Progress bars in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much, and a few words on what it is."""


def shown(work: Callable, bar: Bar | Stages) -> Callable:
    """The work with its bar as last argument; the bar is closed before anything else is printed."""

    def with_bar(*args):
        with closing(bar):
            return work(*args, bar)

    return with_bar


class Bar:
    """Progress bar of a pretraining run: steps, loss, entropy and k-NN accuracy."""

    def __init__(self):
        self.bar, self.alarm, self.knn = None, "", ""

    def __call__(self, record: dict) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=record["steps"], initial=record["step"], unit="step", dynamic_ncols=True)
        self.bar.update(record["step"] - self.bar.n)
        if "knn" in record:
            self.knn = f", k-NN {record['knn']:.1%}"
        if "loss" in record:
            self.bar.set_postfix_str(f"loss {record['loss']:.3f}, entropy {record['teacher_entropy']:.2f}{self.knn}")
            if record["alarm"] and record["alarm"] != self.alarm:
                self.bar.write(f"training: {record['alarm']}", file=sys.stderr)
            self.alarm = record["alarm"]

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Stages:
    """A bar for each stage of a task; called as `Progress`."""

    def __init__(self):
        self.bar, self.what = None, ""

    def __call__(self, done: int, of: int, what: str) -> None:
        from tqdm import tqdm

        if what != self.what:
            if self.bar is not None:
                self.bar.close()
            self.bar, self.what = tqdm(total=of, desc=what, dynamic_ncols=True), what
        self.bar.update(done - self.bar.n)
        if done == of:
            self.bar.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
