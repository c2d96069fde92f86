"""Routes of ours on the host's server, for its own pages: small requests in, pictures out, nothing beside a run."""

# pyright: reportMissingImports=false

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from server import PromptServer

from .compat import log

MAX_BYTES = 4096  # of a body

Answer = tuple[int, bytes]  # a status of HTTP, and a PNG file if that is 200


def post(path: str, prepare: Callable[[Any], Callable[[], Answer]]) -> None:
    """Answer what pages of the host post to a path such as "/flowcore/live", also below /api."""
    # `prepare` gets the body's JSON as it comes, in the server's own thread; what it returns runs in another, in turn.
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    thread = ThreadPoolExecutor(1, thread_name_prefix="flowcore")

    async def handler(request: Any) -> Any:
        if not _same_origin(request):
            return web.Response(status=403)
        if request.content_length is None or request.content_length > MAX_BYTES:
            return web.Response(status=413)
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError):
            return web.Response(status=400)
        try:
            status, png = await asyncio.get_running_loop().run_in_executor(thread, prepare(body))
        except Exception:
            log.exception("flowcore could not answer %s", path)
            status, png = 500, b""
        return web.Response(status=status, body=png, content_type="image/png", headers={"Cache-Control": "no-store"})

    server.routes.post(path)(handler)


def show_as_inputs(is_ours: Callable[[str], bool], read: Callable[[str], tuple[bytes, str]]) -> None:
    """Show pictures of ours where the frontend shows files of the input folder: on nodes, in menus and in App mode."""
    # It asks for all of them at /view. `read` returns the contents and the type of the file of a name that is ours.

    async def answer(name: str) -> Any:  # not in the server's own thread, which decoding would hold up
        body, kind = await asyncio.get_running_loop().run_in_executor(None, read, name)
        return web.Response(body=body, content_type=kind)

    def serve(request: Any, handler: Callable[[Any], Any]) -> Any:
        asked = request.rel_url.query
        if request.path not in ("/view", "/api/view") or asked.get("type") != "input":
            return handler(request)
        name = "/".join(filter(None, (asked.get("subfolder"), asked.get("filename"))))
        return answer(name) if is_ours(name) else handler(request)

    _before_handlers(serve)


def when_asked_to_free(free: Callable[[], None]) -> None:
    """Call something when a person or a script frees the host's memory, which tells only loaded models of it."""

    def serve(request: Any, handler: Callable[[Any], Any]) -> Any:
        if request.path in ("/free", "/api/free") and request.method == "POST":
            free()
        return handler(request)

    _before_handlers(serve)


def _before_handlers(serve: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """Let a function see all requests first. It is not async: what others raise does not pass through us."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.app.middlewares.append(web.middleware(serve))


def is_at_work() -> bool:
    """Whether the host runs a prompt, or has one waiting."""
    return PromptServer.instance.prompt_queue.get_tasks_remaining() > 0


def _same_origin(request: Any) -> bool:
    """Whether a page of this server asks, or a script. The host lets other pages ask where it is told to (CORS)."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or origin.partition("://")[2] == request.headers.get("Host")
