"""Run commands of `python -m dinoviz` in this process, and list what they wrote."""

from pathlib import Path

from dinoviz.__main__ import main


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def refused(capsys, *arguments) -> str:
    """The one line that a refused command prints to standard error."""
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("dinoviz: ")
    assert error.count("\n") == 1
    return error
