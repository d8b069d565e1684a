"""Open dinoviz in the browser: `python app.py`. Also the entry of the Hugging Face Space."""

import argparse
import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    """Build the page and serve it."""
    options = _arguments()
    from dinoviz.ui import build, launch_options
    from dinoviz.ui.workbench import Settings

    on_space = "SPACE_ID" in os.environ
    host = options.host or ("0.0.0.0" if on_space else "127.0.0.1")
    public = on_space or options.share or host not in ("127.0.0.1", "localhost", "::1")
    build(Settings(public=public)).launch(
        server_name=host,
        server_port=options.port,
        share=options.share,
        inbrowser=options.open and _has_screen(),
        mcp_server=options.mcp,
        **launch_options(),
    )


def _has_screen() -> bool:
    """Whether there is a browser to open a page in, not a terminal that a text browser would take over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", help="address to listen on; by default only this machine reaches the page")
    parser.add_argument("--port", type=int, help="port to listen on; by default the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--mcp", action="store_true", help="serve the same functions as MCP tools (pip install gradio[mcp])"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
