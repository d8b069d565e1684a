"""Middleware in front of Gradio: checks of host, origin and size, and uploads into private folders."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from gradio.route_utils import MultiPartException, upload_fn
from gradio.routes import file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dinoviz.ui.page import Page
from dinoviz.ui.temporary_files import TooMuch

# Of a request: marks, settings and names of files; a picture from the webcam is in it as a data URL.
MAX_BODY = 16 * 2**20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api"
# Parts of Gradio that this page does not use: fetching other hosts, recording, editing by a language model, metrics.
CLOSED = (
    *(f"{API}/{name}" for name in ("proxy=", "file=http:", "file=https:", "process_recording", "component_server")),
    *(f"{API}/{name}" for name in ("vibe", "undo-vibe", "dev/", "stream/", "run-history", "profiling", "deep_link")),
    "/monitoring",
)


@dataclass(frozen=True)
class Hosts:
    """The host names under which the page is served.

    An attacker's name can be made to point at this machine (DNS rebinding), and a browser then lets the attacker's
    page read the answers. An IP address cannot be rebound.
    """

    names: frozenset[str]
    any_address: bool
    shared: Callable[[], str | None] = lambda: None

    def allows(self, host: str) -> bool:
        """Whether a Host header, with or without a port, has one of the names."""
        name = host_name(host)
        if not name:
            return False
        shared = self.shared()
        return name in self.names or (self.any_address and is_address(name)) or bool(shared and name == shared)


def hosts(host: str, *, on_space: bool, allowed: Iterable[str] = (), shared: Callable[[], str | None]) -> Hosts:
    """The host names for an app that listens on `host`.

    Always the loopback names; if the app can be reached from other machines, any IP address and this machine's name;
    on a Space, its host.

    Args:
        host: the address that the app listens on.
        on_space: whether it runs on a Hugging Face Space.
        allowed: more names, for proxies.
        shared: gives the host of the share link, once there is one.
    """
    names = {*LOOPBACK, *map(host_name, allowed)} - {""}
    reachable = on_space or host not in LOOPBACK
    if reachable:
        names |= {host_name(host), socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    if on_space:
        names |= {host_name(name) for name in os.environ.get("SPACE_HOST", "").split(",") if name}
        names |= {_space_host(os.environ.get("SPACE_ID", ""))}
    return Hosts(frozenset(names - {""}), reachable, shared)


def _space_host(space: str) -> str:
    """The host of the Space owner/name: `owner-name.hf.space`."""
    return f"{space.replace('/', '-').replace('_', '-').replace('.', '-').lower()}.hf.space" if space else ""


def host_name(host: str) -> str:
    """The name in a Host header in lower case, without its port; "" if it cannot be read."""
    try:
        return (urlsplit(f"//{host.strip()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    """Whether the name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def middleware(page: Page, allowed: Hosts) -> list[Middleware]:
    """The middleware, for the `app_kwargs` of `launch`."""
    return [Middleware(Door, page=page, allowed=allowed)]


class Door:
    """ASGI middleware: refuses requests, takes uploads, and records when a page is opened and left."""

    def __init__(self, app, page: Page, allowed: Hosts):
        self.app, self.page, self.allowed, self.files = app, page, allowed, page.files

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        refusal = self._refusal(request)
        if refusal:
            await refusal(scope, receive, send)
        elif _path(request) == f"{API}/upload" and request.method == "POST":
            await (await self._upload(request))(scope, receive, send)
        elif request.method == "POST":
            await self._post(request, scope, receive, send)
        elif _path(request).startswith(f"{API}/heartbeat/"):
            await self._page_open(_path(request).rpartition("/")[2], scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self.allowed.allows(host):
            return PlainTextResponse(
                "This page is not served under that host name; the operator can allow it: --allowed-host NAME.", 421
            )
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD", "OPTIONS") and origin is not None:
            source = urlsplit(origin).netloc if origin != "null" else ""
            if not self.allowed.allows(source):
                return PlainTextResponse("Pages of other sites cannot write here.", 403)
        if _path(request).startswith(CLOSED):
            return PlainTextResponse("There is no such page.", 404)
        return None

    async def _post(self, request: Request, scope, receive, send) -> None:
        """Forward a request whose body is small enough, counted in bytes, since the declared length may be wrong."""
        body = bytearray()
        async for chunk in _chunks(request):
            body += chunk
            if len(body) > MAX_BODY:
                sentence = f"A request may have at most {MAX_BODY >> 20} MB."
                await JSONResponse({"detail": sentence}, 413)(scope, receive, send)
                return
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                json.loads(bytes(body) or b"null")
            except (ValueError, RecursionError):
                await JSONResponse({"detail": "The request is not valid JSON."}, 400)(scope, receive, send)
                return
        sent = False

        async def replay() -> dict:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    async def _page_open(self, session: str, scope, receive, send) -> None:
        self.files.opened(session)
        try:
            await self.app(scope, receive, send)
        finally:
            self.files.left(session)

    async def _upload(self, request: Request) -> Response:
        """Take an upload as Gradio does, but into a folder with a secret name, within the client's share of disk."""
        client = request.client.host if request.client else ""
        length = request.headers.get("content-length", "")
        upload_id = request.query_params.get("upload_id")
        most = self.page.max_file_size or float("inf")
        if not length.isdigit():
            return PlainTextResponse("An upload needs a Content-Length.", 411)
        try:
            with self.files.upload(client, int(length)) as folder:
                paths, waiting, _ = await upload_fn(
                    request, str(folder), most, upload_id, upload_progress=file_upload_statuses if upload_id else None
                )
                assert not waiting, "uploads are written into their final folder"
                self.files.uploaded(map(str, paths), client)
                return JSONResponse([str(path) for path in paths])
        except TooMuch as error:
            return _too_large(str(error))
        except MultiPartException as error:
            large = "maximum allowed size" in error.message
            sentence = f"A file may have at most {most / 2**20:.0f} MB." if large else "The upload cannot be read."
            return PlainTextResponse(sentence, 413 if large else 400)
        except HTTPException as error:
            return PlainTextResponse(str(error.detail), error.status_code)
        except (KeyError, ValueError, TypeError, AttributeError):  # from the parser, for malformed parts
            return PlainTextResponse("The upload cannot be read.", 400)
        except OSError as error:
            return PlainTextResponse(f"The upload cannot be stored: {error.strerror}.", 507)
        except ClientDisconnect:
            return PlainTextResponse("The upload was interrupted.", 400)


def _too_large(sentence: str) -> Response:
    return PlainTextResponse(sentence, 413)


async def _chunks(request: Request):
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        return


def _path(request: Request) -> str:
    """The path below the mount point of the app, without doubled and trailing slashes."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return "/" + "/".join(filter(None, path.split("/")))
