"""Our routes on the host's server, for its own pages: small requests in, pictures or numbers out."""

# pyright: reportMissingImports=false

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from server import PromptServer

from .compat import log

MAX_BYTES = 4096  # bytes of a body

Answer = tuple[int, bytes]  # an HTTP status, and contents if that is 200


def post(path: str, answer: Callable[[Any], Answer], content_type: str = "image/png") -> None:
    """Answer what pages of the host post to a path, also below /api: JSON, whatever it holds, in a thread each."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    async def handler(request: Any) -> Any:
        if not _is_same_origin(request):
            return web.Response(status=403)
        if request.content_length is None or request.content_length > MAX_BYTES:
            return web.Response(status=413)
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError):
            return web.Response(status=400)
        try:
            status, contents = await asyncio.to_thread(answer, body)
        except Exception:
            log.exception("flowcore could not answer %s", path)
            status, contents = 500, b""
        fresh = {"Cache-Control": "no-store"}
        return web.Response(status=status, body=contents, content_type=content_type, headers=fresh)

    server.routes.post(path)(handler)


def serve_input_pictures(is_ours: Callable[[str], bool], read: Callable[[str], tuple[bytes, str]]) -> None:
    """Serve our own pictures wherever the frontend asks /view for a file of the input folder.

    `read` returns the contents and content type for a name that `is_ours`; it runs outside of the server's thread.
    """

    async def answer(name: str) -> Any:
        body, content_type = await asyncio.to_thread(read, name)
        return web.Response(body=body, content_type=content_type)

    def serve(request: Any, handler: Callable[[Any], Any]) -> Any:
        query = request.rel_url.query
        if request.path not in ("/view", "/api/view") or query.get("type") != "input":
            return handler(request)
        name = "/".join(filter(None, (query.get("subfolder"), query.get("filename"))))
        return answer(name) if is_ours(name) else handler(request)

    _before_handlers(serve)


def on_free_request(free: Callable[[], None]) -> None:
    """Call `free` when a person or script asks the host to free memory; the host itself tells only loaded models."""

    def serve(request: Any, handler: Callable[[Any], Any]) -> Any:
        if request.path in ("/free", "/api/free") and request.method == "POST":
            free()
        return handler(request)

    _before_handlers(serve)


def list_templates(order: Sequence[str]) -> None:
    """List the templates of these names in this order, which the page keeps; the host lists files as the disk does."""
    places = {name: place for place, name in enumerate(order)}

    async def listed(request: Any, handler: Callable[[Any], Any]) -> Any:
        answer = await handler(request)
        try:
            by_pack = json.loads(answer.body)
            ours = {pack: sorted(names, key=lambda name: places.get(name, -1)) for pack, names in by_pack.items()}
        except (AttributeError, TypeError, ValueError):
            return answer
        return web.json_response(ours)

    def serve(request: Any, handler: Callable[[Any], Any]) -> Any:
        is_list = request.path in ("/workflow_templates", "/api/workflow_templates")
        return listed(request, handler) if is_list else handler(request)

    _before_handlers(serve)


def _before_handlers(serve: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """Let a function see all requests first. It is not async, or errors of other handlers would be raised in it."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.app.middlewares.append(web.middleware(serve))


def is_at_work() -> bool:
    """Whether the host is running a prompt, or has one waiting."""
    return PromptServer.instance.prompt_queue.get_tasks_remaining() > 0


def _is_same_origin(request: Any) -> bool:
    """Whether a page of this server, or a script, sent the request; with CORS enabled, the host lets all pages pass."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or origin.partition("://")[2] == request.headers.get("Host")
