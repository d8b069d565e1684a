"""Errors meant for the user, and how a command exits with one."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable

from safetensors import SafetensorError

LONGEST = 1000  # characters of a message, which may quote a file name or a table cell of any length


class DinovizError(ValueError):
    """An error that the user can fix; the message is one sentence that says how.

    The command line prints it and exits with status 2; the app shows it in place of the result. Any other exception
    is a bug in dinoviz.
    """

    def __str__(self) -> str:
        """The message on one line: a quoted name may contain line breaks, terminal escapes or invalid UTF-8."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_share(name: str, value: float) -> None:
    """Raise DinovizError unless the value is from 0 to 1."""
    if not 0 <= value <= 1:
        raise DinovizError(f"The {name} is a number from 0 to 1, not {value}.")


class Stopped(Exception):
    """Raised inside a long computation that the user stopped."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, the user's quota, one file
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_error(error: OSError | SafetensorError) -> DinovizError | None:
    """The error as one for the user if a disk is full or not writable, else None.

    For handlers of unexpected errors. The message names no path, since visitors of a public page may read it.
    """
    number = getattr(error, "errno", None) or _number(str(error))
    if number in FULL:
        return DinovizError("The disk is full: free some space and try again.")
    if number in CLOSED:
        return DinovizError(
            f"A file cannot be written ({os.strerror(number)}): the user who runs dinoviz needs write access."
        )
    return None


def _number(text: str) -> int | None:
    """The errno of an error without one: safetensors has it in the text, NumPy reports too few bytes written."""
    if found := re.search(r"\(os error (\d+)\)", text):
        return int(found[1])
    return errno.ENOSPC if re.fullmatch(r"\d+ requested and \d+ written", text) else None


def status(program: str, work: Callable[[], int | None], interrupted: str = "stopped.") -> int:
    """Run `work` and return the exit status: its own or 0, 2 for an error of the user, 130 for Ctrl-C.

    Args:
        program: name that the printed line begins with.
        work: returns an exit status, or None for 0.
        interrupted: message after Ctrl-C.
    """
    try:
        return work() or 0
    except DinovizError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for example, has closed the pipe
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
