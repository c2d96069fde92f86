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
        self.url, self.timeout = url, timeout

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

    def queue(self, workflow: Json, client_id: str = "", **extra: Any) -> str:
        """Queue a workflow in API format, with what the frontend sends beside it; the id of the run, or a RunError."""
        try:
            detail = json.loads(self.post("/prompt", {"prompt": workflow, "client_id": client_id, "extra_data": extra}))
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

    def run(
        self,
        workflow: Json,
        on_event: Callable[[Json | bytes], None] = lambda _: None,
        timeout: float = 600,
        **extra: Any,
    ) -> Json:
        """Queue a workflow and wait until it has ended; its entry in the history, or a RunError or TimeoutError.

        `on_event` is called with every message of the server, from the first to the last: JSON, or a preview's bytes.
        """
        with Events(self.url) as events:
            run = self.queue(workflow, events.id, **extra)
            for event in events.until(time.monotonic() + timeout):
                on_event(event)
                if isinstance(event, dict) and event["type"] == "executing" and event["data"]["node"] is None:
                    break  # the last message, sent when the history has been written
        return self.wait(run, timeout=1)

    def wait(self, run: str, timeout: float = 600) -> Json:
        """Wait until a queued run has ended; its entry in the history, or a RunError or TimeoutError."""
        deadline = time.monotonic() + timeout
        while run not in (history := self.get_json(f"/history/{run}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run} has not ended in time")
            time.sleep(0.05)
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

    The server sends its progress to the client under whose id a workflow was queued. Each connection has an id of its
    own: when the server notices that one is closed, it forgets whatever is connected under that id by then.
    """

    def __init__(self, url: str) -> None:
        self.id = uuid.uuid4().hex
        self._loop = asyncio.new_event_loop()
        self._session, self._socket = self._loop.run_until_complete(_connect(f"{url}/ws?clientId={self.id}"))
        next(self.until(time.monotonic() + 60))  # a first message, which says that the server knows the id

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def until(self, deadline: float) -> Iterator[Json | bytes]:
        """Yield messages until a moment of `time.monotonic`."""
        while (left := deadline - time.monotonic()) > 0:
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
