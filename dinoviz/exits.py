"""How a command ends: its exit status, and one line on standard error where it did not go well."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from safetensors import SafetensorError

from dinoviz.atomic_files import disk_error
from dinoviz.errors import DinovizError


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
