"""A process that feeds files to doors and says how each ended; the runner ends it where it hangs.

It reads a JSON line {"door", "path", "good"} from standard input for each file, and answers with one:
{"outcome": "right" | "sentence" | "traceback", "detail": ..., "peak": bytes}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from dinoviz.errors import DinovizError
from tests.hostile import doors

LONGEST = 1500  # characters of a sentence


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints from C goes into the log
    rooms: dict[str, doors.Room] = {}
    print(json.dumps({"outcome": "ready"}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        work = Path(tempfile.mkdtemp(prefix="hostile-"))
        room = rooms.setdefault(asked["good"], doors.Room(Path(asked["good"]), work))
        room.work = work
        _forget_peak()
        outcome, detail = _feed(doors.ALL[asked["door"]], Path(asked["path"]), room)
        answer = {"outcome": outcome, "detail": detail, "peak": _peak()}
        shutil.rmtree(work, ignore_errors=True)
        print(json.dumps(answer), file=answers)


def _feed(door: doors.Door, path: Path, room: doors.Room) -> tuple[str, str]:
    """How it ended, and what was said."""
    # As a terminal takes them: what cannot be encoded is an error on standard output, not on standard error.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = door(path, room)
    except DinovizError as error:
        return _sentence(str(error))
    except SystemExit as ended:  # argparse
        status = ended.code
    except MemoryError:
        return "memory", "MemoryError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", _where(error)
    if status is None:
        return "right", ""
    said = err.buffer.getvalue().decode(errors="replace")
    if "Traceback" in said:
        return "traceback", said[-300:]
    if status == 0:
        return "right", ""
    lines = [line for line in said.splitlines() if line.startswith(("dinoviz:", "training:"))]
    if status != 2 or not lines:
        return "traceback", f"exit status {status}, standard error: {said[-300:]!r}"
    return _sentence(lines[0], alone=said.strip("\n"))


def _sentence(text: str, alone: str = "") -> tuple[str, str]:
    """A refusal has to be one line that one can read."""
    if not text.strip() or len(text) > LONGEST or any(c in "\n\r\x1b\x07\x00" for c in text):
        return "traceback", f"no sentence on one line, {len(text)} characters: {text[:200]!r}"
    if alone.count("\n") > 8:
        return "traceback", f"{alone.count(chr(10)) + 1} lines on standard error: {alone[:300]!r}"
    return "sentence", text[:300]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if "site-packages" not in f.filename and "/lib/python" not in f.filename and "hostile" not in f.filename
    ]
    last = (ours or frames)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{text} ({Path(last.filename).name}:{last.lineno} {last.name})"


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # elsewhere than on Linux the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory since then, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
