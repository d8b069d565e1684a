"""Open dinoviz in the browser: `python app.py`. Also the entry of the Hugging Face Space."""

import argparse
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    """Build the page and serve it."""
    options = _arguments()
    from dinoviz.ui import build, door, launch_options
    from dinoviz.ui.workbench import Settings

    on_space = "SPACE_ID" in os.environ
    host = options.host or ("0.0.0.0" if on_space else "127.0.0.1")
    public = on_space or options.share or host not in ("127.0.0.1", "localhost", "::1")
    settings = Settings(
        public=public,
        train=not public or os.environ.get("DINOVIZ_TRAIN") == "1",
        data_roots=() if public else tuple(map(Path, options.data or _folders_in("DINOVIZ_FOLDERS") or ["."])),
    )
    # Ends as Ctrl-C does: what was started here is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    page = build(settings)
    allowed = door.hosts(
        host,
        on_space=on_space,
        allowed=[*(options.allowed_host or []), *os.environ.get("DINOVIZ_ALLOWED_HOSTS", "").split(",")],
        shared=lambda: urlsplit(page.share_url or "").hostname,
    )
    page.launch(
        app_kwargs={"middleware": door.middleware(page, allowed)},
        server_name=host,
        server_port=options.port,
        share=options.share,
        inbrowser=options.open and _has_screen(),
        mcp_server=options.mcp,
        **launch_options(),
    )


def _folders_in(variable: str) -> list[str]:
    return list(filter(None, os.environ.get(variable, "").split(os.pathsep)))


def _has_screen() -> bool:
    """Whether there is a browser to open a page in, not a terminal that a text browser would take over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", help="address to listen on; by default only this machine reaches the page")
    parser.add_argument("--port", type=int, help="port to listen on; by default the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument(
        "--data",
        action="append",
        metavar="FOLDER",
        help="pictures below this folder may be trained on, from the page; by default those below the folder that the "
        "app is started in, and none on a public page; may be given several times ($DINOVIZ_FOLDERS)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="a name that the page may be asked for by, beside its own: that of a proxy in front of it, or of a site "
        "that calls it; may be given several times ($DINOVIZ_ALLOWED_HOSTS, with commas)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--mcp", action="store_true", help="serve the same functions as MCP tools (pip install gradio[mcp])"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
