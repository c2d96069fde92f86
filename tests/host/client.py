"""A ComfyUI server over HTTP: queue a workflow, follow its progress, fetch its pictures."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import aiohttp  # comes with the host

Json = dict[str, Any]


class RunError(RuntimeError):
    """The server refused a workflow, or a node failed; the message says which and why."""

    def __init__(self, message: str, detail: Json) -> None:
        super().__init__(message)
        self.detail = detail  # what the server sent, as it is


class Client:
    def __init__(self, url: str, timeout: float = 60) -> None:
        self.url, self.timeout, self.id = url, timeout, uuid.uuid4().hex

    def get(self, path: str) -> bytes:
        """Fetch a path of the server, which begins with a slash."""
        with urllib.request.urlopen(self.url + path, timeout=self.timeout) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: bytes | Json, **headers: str) -> bytes:
        """Send bytes, or something as JSON, to a path of the server; the body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()

    def queue(self, workflow: Json, **extra: Any) -> str:
        """Queue a workflow in API format, with what the frontend sends beside it; the id of the run, or a RunError."""
        try:
            detail = json.loads(self.post("/prompt", {"prompt": workflow, "client_id": self.id, "extra_data": extra}))
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            detail = json.loads(error.read())
        # Of some nodes only, the server leaves these out, and runs the others.
        if "prompt_id" in detail and not detail["node_errors"]:
            return detail["prompt_id"]
        lines = [detail.get("error", {}).get("message", "refused")]
        for node in detail.get("node_errors", {}).values():
            lines += [f"{node['class_type']}: {e['message']}: {e['details']}" for e in node["errors"]]
        raise RunError("\n".join(lines), detail)

    def wait(
        self,
        run: str,
        on_event: Callable[[Json | bytes], None] | None = None,
        timeout: float = 600,
        events: Events | None = None,
    ) -> Json:
        """Wait until a run has ended; its entry in the server's history, or a RunError or TimeoutError.

        Meanwhile `on_event` is called with every message of the server: JSON, or the bytes of a preview. The first ones
        are missed without `events` that were opened before the run was queued.
        """
        deadline = time.monotonic() + timeout
        with nullcontext(events) if events else Events(self.url, self.id) as events:
            while run not in (history := self.get_json(f"/history/{run}")):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"run {run} did not end within {timeout:.0f} s")
                for event in events.until(time.monotonic() + 0.5):
                    if on_event:
                        on_event(event)
                    # The history is written between the news that the run is over and that the queue has changed.
                    if isinstance(event, dict) and event.get("type") == "status":
                        break
            if on_event:  # what was sent before the run ended
                for event in events.until(time.monotonic() + 0.5):
                    on_event(event)
        entry = history[run]
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                raise RunError(f"{data['node_type']}: {data['exception_message'].strip()}", data)
            if kind == "execution_interrupted":
                raise RunError(f"{data['node_type']}: cancelled", data)
        return entry

    def pictures(self, entry: Json) -> list[bytes]:
        """Fetch the files that a run has saved, in order; `entry` is what `wait` returned."""
        files = [file for output in entry["outputs"].values() for file in output.get("images", [])]
        return [self.view(**file) for file in files if file["type"] == "output"]

    def view(self, **file: Any) -> bytes:
        """Fetch a file of the server's folders, by name, subfolder and type."""
        return self.get("/api/view?" + urllib.parse.urlencode(file))

    def cancel(self) -> None:
        self.post("/interrupt", {})


class Events:
    """The server's websocket, read only: texts are JSON, bytes are previews.

    A server sends each client, by the id under which workflows are queued, its own progress.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._session, self._socket = self._loop.run_until_complete(_connect(f"{url}/ws?clientId={client_id}"))

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def until(self, deadline: float) -> Iterator[Json | bytes]:
        """Yield messages until a moment of `time.monotonic`, and then what has come already."""
        while True:
            left = max(0.02, deadline - time.monotonic())
            try:
                message = self._loop.run_until_complete(self._socket.receive(left))
            except asyncio.TimeoutError:
                return
            if message.type is aiohttp.WSMsgType.TEXT:
                yield json.loads(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                yield message.data
            else:
                raise ConnectionError("the server has closed the connection; did it stop?")


async def _connect(address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    return session, await session.ws_connect(address, max_msg_size=0)
