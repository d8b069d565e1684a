"""Open dinoviz in the browser: `python app.py`. Also the entry of the Hugging Face Space."""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from dinoviz.errors import DinovizError, status

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    """Build the page and serve it."""
    options = _arguments()
    on_space = "SPACE_ID" in os.environ
    host = options.host or ("0.0.0.0" if on_space else "127.0.0.1")
    _check_address(host, options.port)
    from dinoviz.ui import build, door, launch_options
    from dinoviz.ui.access import Settings

    public = on_space or options.share or host not in ("127.0.0.1", "localhost", "::1")
    settings = Settings(
        public=public,
        train=not public or os.environ.get("DINOVIZ_TRAIN") == "1",
        data_roots=() if public else tuple(map(Path, options.data or _folders_in("DINOVIZ_FOLDERS") or ["."])),
    )
    # End as after Ctrl-C, with the runs that were started here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page = build(settings)
    allowed = door.hosts(
        host,
        on_space=on_space,
        allowed=[*(options.allowed_host or []), *os.environ.get("DINOVIZ_ALLOWED_HOSTS", "").split(",")],
        shared=lambda: urlsplit(page.share_url or "").hostname,
    )
    try:
        page.launch(
            app_kwargs={"middleware": door.middleware(page, allowed)},
            server_name=host,
            server_port=options.port,
            share=options.share,
            inbrowser=options.open and _has_screen(),
            mcp_server=options.mcp,
            **launch_options(),
        )
    except OSError as error:
        if "port" not in str(error):  # Gradio's error has no errno
            raise
        raise DinovizError("There is no free port from 7860 on: choose another with --port.") from None


def _check_address(host: str, port: int | None) -> None:
    """Raises DinovizError if the address cannot be listened on; Gradio reports that after a minute, or never."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            if os.name == "posix":  # as the server does; otherwise the port of an app that has just ended seems in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror:
        raise DinovizError(f"--host {host}: there is no such address; use 127.0.0.1 or 0.0.0.0.") from None
    except (OSError, UnicodeError) as error:
        where = f"{host}:{port}" if port else host
        why = getattr(error, "strerror", None) or "not an address"
        raise DinovizError(f"The page cannot be served at {where}: {why}; choose another --port or --host.") from None


def _folders_in(variable: str) -> list[str]:
    return list(filter(None, os.environ.get(variable, "").split(os.pathsep)))


def _has_screen() -> bool:
    """Whether there is a graphical browser; a text browser would take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _port(text: str) -> int:
    if not (text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text[:20]!r}")
    return int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", help="address to listen on; by default only this machine can open the page")
    parser.add_argument("--port", type=_port, help="port to listen on; by default the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument(
        "--data",
        action="append",
        metavar="FOLDER",
        help="folder whose pictures the page may train on; by default the folder that the app is started in, and none "
        "on a public page; may be given several times ($DINOVIZ_FOLDERS)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="another host name under which the page is served, as of a proxy in front of it, or of a site that calls "
        "it; may be given several times ($DINOVIZ_ALLOWED_HOSTS, with commas)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--mcp", action="store_true", help="serve the same functions as MCP tools (pip install gradio[mcp])"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(status("app.py", main))
