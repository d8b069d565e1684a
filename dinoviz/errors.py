"""The one kind of error that is meant for the person in front of the screen."""


class DinovizError(ValueError):
    """A problem that the user can understand and mend, told in one plain sentence.

    The command line prints it and exits with status 2; the app shows it where the result would be.
    Anything else that is raised is a defect of ours.
    """


def check_share(name: str, value: float) -> None:
    """Raises DinovizError unless the value is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise DinovizError(f"The {name} is a number from 0 to 1, not {value}.")


class Stopped(Exception):
    """Raised inside long work when the person asked for it to stop."""
