"""The one kind of error that is meant for the person in front of the screen."""

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
