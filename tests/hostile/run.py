"""Feed hostile files to every door, and count how that ends.

    python -m tests.hostile                                  everything (some twenty minutes on two cores)
    python -m tests.hostile --doors open_image marks         some doors only
    python -m tests.hostile --kinds models probes            some kinds of files only

Each file is "right", or refused by one "sentence"; "traceback", "hang", "memory" and "wrong" (what must be refused was
taken, or the other way about) are defects, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue

import psutil

from tests.hostile.doors import COMMANDS, DOORS, LIBRARY, Doors
from tests.hostile.generate import KINDS, SEED, Case, Corpus, generate

ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ("right", "sentence", "wrong", "traceback", "hang", "memory")
DEFECTS = OUTCOMES[2:]
# A file may take so many seconds of a core, and so many on the clock of a busy machine; a worker that does nothing for
# so long waits for what never comes.
CPU_SECONDS, SECONDS, IDLE_SECONDS = 20.0, 90.0, 10.0
START_SECONDS = 300.0  # for a worker to be ready and to have imported what a door needs
MOST_GROWTH = 1_500_000_000  # bytes of memory that one file may take
LARGE = 2  # times that much for a picture of 49 million pixels, which commands draw at its full size
STOP_GROWTH = 2 * MOST_GROWTH  # where a worker is ended before the machine suffers


@dataclass(frozen=True)
class Result:
    """How a file ended at a door. growth: bytes of memory at most, beyond what the worker had before."""

    door: str
    case: str
    kind: str
    outcome: str
    detail: str
    seconds: float
    growth: int


class Worker:
    """A process that feeds files to doors; another one is started where it hangs, dies or grows."""

    def __init__(self, good: Path, log: Path):
        self.good, self.log, self.process = good, log, None
        self._warm: set[str] = set()

    def feed(self, door: str, path: str, scale: float = 1) -> tuple[str, str, float, int]:
        """-> outcome, detail, seconds, growth. The first call of a door includes its imports.

        scale: of the limits, for a file that is right and asks for more.
        """
        if self.process is None:
            self._start()
        first = door not in self._warm
        self._warm.add(door)
        limits = (START_SECONDS, START_SECONDS) if first else (scale * CPU_SECONDS, scale * SECONDS)
        begun, before = time.monotonic(), self._memory()
        answer = self._ask({"door": door, "path": path, "good": str(self.good)}, *limits, before)
        growth = max(0, answer.get("peak", 0) - before)
        outcome, detail = answer["outcome"], answer["detail"]
        if growth > scale * MOST_GROWTH and outcome in ("right", "sentence", "traceback"):
            outcome, detail = "memory", f"{growth / 1e6:,.0f} MB more than before; {outcome}: {detail}"
        elif outcome == "memory":
            growth = max(growth, STOP_GROWTH)
        return outcome, detail, time.monotonic() - begun, growth

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self._work.cleanup()
            self._warm.clear()

    def _start(self) -> None:
        self._work = tempfile.TemporaryDirectory(prefix="hostile-work-")  # of a worker that is ended nothing stays
        environment = {
            **os.environ,
            "TMPDIR": self._work.name,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answers: Queue[str] = Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout, self._answers), daemon=True).start()
        self._watched = psutil.Process(self.process.pid)
        self._answers.get(timeout=START_SECONDS)

    @staticmethod
    def _listen(lines: Iterable[str], answers: Queue[str]) -> None:
        for line in lines:
            answers.put(line)

    def _ask(self, asked: dict, cpu_seconds: float, seconds: float, before: int) -> dict:
        begun, cpu = time.monotonic(), self._cpu()
        worked, used = begun, cpu  # when it was last seen at work
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        while True:
            try:
                return json.loads(self._answers.get(timeout=0.05))
            except Empty:
                pass
            if self.process.poll() is not None:
                return self._ended("traceback", f"the worker died with status {self.process.returncode}")
            if self._memory() - before > STOP_GROWTH:
                return self._ended("memory", f"ended at {STOP_GROWTH / 1e6:,.0f} MB more than before")
            now, used_now = time.monotonic(), self._cpu()
            if used_now > used:
                worked, used = now, used_now
            if now - begun > seconds or used - cpu > cpu_seconds or now - worked > IDLE_SECONDS:
                return self._ended("hang", f"ended after {now - begun:.0f} s, {used - cpu:.0f} s of a core")

    def _ended(self, outcome: str, detail: str) -> dict:
        self.close()
        return {"outcome": outcome, "detail": detail}

    def _cpu(self) -> float:
        try:
            times = self._watched.cpu_times()
            return times.user + times.system
        except psutil.Error:
            return 0.0

    def _memory(self) -> int:
        try:
            return self._watched.memory_info().rss
        except psutil.Error:
            return 0


def feed(corpus: Corpus, doors: Sequence[str] | None = None, log: Path | None = None) -> Iterator[Result]:
    """Feed all cases to the doors of their kind, the library's and the commands'; doors: only these."""
    worker = Worker(corpus.root / "good", log or corpus.root / "worker.log")
    try:
        for case, door in pairs(corpus.cases, doors):
            yield judged(case, door, *worker.feed(door, case.path, LARGE if "/large-" in case.name else 1))
    finally:
        worker.close()


def pairs(cases: Iterable[Case], doors: Sequence[str] | None = None) -> list[tuple[Case, str]]:
    """Each case with each door of its kind, door by door, so that a worker imports little at a time."""
    found = [(case, door) for case in cases for door in _inner(DOORS[case.group])]
    order = {name: place for place, name in enumerate((*LIBRARY, *COMMANDS))}
    return sorted(((c, d) for c, d in found if doors is None or d in doors), key=lambda each: order[each[1]])


def _inner(doors: Doors) -> tuple[str, ...]:
    return (*doors.library, *doors.commands)


def judged(case: Case, door: str, outcome: str, detail: str, seconds: float, growth: int) -> Result:
    """The outcome, "wrong" if it is not as the case expects."""
    expected = "either" if door in DOORS[case.group].either else case.expected
    if outcome in ("right", "sentence") and expected not in ("either", outcome):
        outcome, detail = "wrong", f"{outcome} where it should be {case.expected}: {detail}"
    return Result(door, case.name, case.kind, outcome, detail, seconds, growth)


def table(results: Sequence[Result]) -> str:
    """Counts by door and kind, and the defects one by one."""
    counts: dict[tuple[str, str], Counter] = {}
    for result in results:
        counts.setdefault((result.door, result.kind), Counter())[result.outcome] += 1
    lines = [f"{'door':22} {'kind':11} " + " ".join(f"{name:>9}" for name in OUTCOMES)]
    for (door, kind), found in counts.items():
        lines.append(f"{door:22} {kind:11} " + " ".join(f"{found[name] or '·':>9}" for name in OUTCOMES))
    total = Counter(result.outcome for result in results)
    lines.append(f"{'all':22} {len(results):<11} " + " ".join(f"{total[name]:>9}" for name in OUTCOMES))
    for result in defects(results):
        lines.append(f"{result.outcome}: {result.door} < {result.case} ({result.seconds:.1f} s): {result.detail}")
    return "\n".join(lines)


def defects(results: Iterable[Result]) -> list[Result]:
    """Those that must not be."""
    return [result for result in results if result.outcome in DEFECTS]


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary:
        folder = options.folder or Path(temporary) / "corpus"
        corpus = generate(folder, options.kinds, options.seed)
        for reason in corpus.skipped:
            print(f"skipped: {reason}")
        print(f"{len(corpus.cases)} cases", flush=True)
        results: list[Result] = []
        for result in feed(corpus, options.doors, options.log):
            results.append(result)
            if result.outcome in DEFECTS:
                print(f"{result.outcome}: {result.door} < {result.case}: {result.detail}", flush=True)
        if not options.no_app:
            from tests.hostile.app import feed as feed_app

            results += feed_app(corpus, options.doors, Path(temporary) / "app.log")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 1 if defects(results) else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--doors", nargs="+", help=f"of {', '.join((*LIBRARY, *COMMANDS))}, or endpoints of the app")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--folder", type=Path, help="for the files, which stay there; it is emptied first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each result there")
    parser.add_argument("--log", type=Path, metavar="FILE", help="for what the workers print")
    parser.add_argument("--no-app", action="store_true", help="library and commands only")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
