"""The one kind of error that is meant for the person in front of the screen, and how a command ends with it."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable

from safetensors import SafetensorError

LONGEST = 1000  # characters of a message; names of files and cells of lists are quoted in it


class DinovizError(ValueError):
    """A problem that the user can understand and mend, told in one plain sentence.

    The command line prints it and exits with status 2; the app shows it where the result would be.
    Anything else that is raised is a defect of ours.
    """

    def __str__(self) -> str:
        """One line: a name that is quoted may hold line ends, commands for the terminal, or what is no UTF-8."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_share(name: str, value: float) -> None:
    """Raises DinovizError unless the value is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise DinovizError(f"The {name} is a number from 0 to 1, not {value}.")


class Stopped(Exception):
    """Raised inside long work when the person asked for it to stop."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for anybody, for this user, in one file
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_error(error: OSError | SafetensorError) -> DinovizError | None:
    """What a full or closed disk refused, in one sentence; None for any other error.

    For those who catch what nobody expected: the sentence names no path, since strangers may read it.
    """
    number = getattr(error, "errno", None) or _number(str(error))
    if number in FULL:
        return DinovizError("The disk is full, so that this cannot be written: free some space and try again.")
    if number in CLOSED:
        return DinovizError(
            f"A file cannot be written ({os.strerror(number)}): whoever runs dinoviz has to open the folder for it."
        )
    return None


def _number(text: str) -> int | None:
    """The system's number of an error whose class keeps none: safetensors says it, NumPy has too few bytes written."""
    if found := re.search(r"\(os error (\d+)\)", text):
        return int(found[1])
    return errno.ENOSPC if re.fullmatch(r"\d+ requested and \d+ written", text) else None


def status(program: str, work: Callable[[], int | None], interrupted: str = "stopped.") -> int:
    """Do the work; 0 if all went well, 2 with one line for what the user can mend, 130 for Ctrl-C.

    program: what the line begins with. interrupted: what it says after Ctrl-C.
    """
    try:
        return work() or 0
    except DinovizError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, SafetensorError) as error:
        if (refused := disk_error(error)) is None:
            raise
        print(f"{program}: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
