"""A ComfyUI server over HTTP: queue a workflow, follow its progress, fetch its pictures."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]


class RunError(RuntimeError):
    """The server refused a workflow, or a node failed; the message says which and why."""

    def __init__(self, message: str, detail: Json) -> None:
        super().__init__(message)
        self.detail = detail  # what the server sent, as it is


class Client:
    """One ComfyUI server, spoken to over HTTP."""

    def __init__(self, url: str, timeout: float = 60) -> None:
        self.url, self.timeout, self.id = url, timeout, uuid.uuid4().hex

    def get(self, path: str) -> bytes:
        """Fetch a path of the server, which begins with a slash."""
        with urllib.request.urlopen(self.url + path, timeout=self.timeout) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        """Fetch a path of the server that answers in JSON."""
        return json.loads(self.get(path))

    def post(self, path: str, body: bytes | Json) -> bytes:
        """Send bytes, or something as JSON, to a path of the server; the body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()

    def queue(self, workflow: Json, **extra: Any) -> str:
        """Queue a workflow in API format; the id of the run.

        Args:
            workflow: Node id to node.
            extra: What the frontend sends beside it.

        Raises:
            RunError: The server refused it.
        """
        try:
            answer = self.post("/prompt", {"prompt": workflow, "client_id": self.id, "extra_data": extra})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            detail = json.loads(error.read())
            raise RunError(_refusal(detail), detail) from None
        return json.loads(answer)["prompt_id"]

    def wait(self, run: str, on_event: Callable[[Json | bytes], None] | None = None, timeout: float = 600) -> Json:
        """Wait until a run has ended; its entry in the server's history.

        Args:
            run: What `queue` returned.
            on_event: Called with every message of the server meanwhile: JSON, or the bytes of a preview.
            timeout: Seconds to wait at most.

        Raises:
            RunError: A node failed, or the run was cancelled.
            TimeoutError: It did not end in time.
        """
        deadline = time.monotonic() + timeout
        with Events(self.url, self.id) as events:
            while run not in (history := self.get_json(f"/history/{run}")):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"run {run} did not end within {timeout:.0f} s")
                for event in events.until(time.monotonic() + 0.5):
                    if on_event:
                        on_event(event)
                    # The history is written between the news that the run is over and that the queue has changed.
                    if isinstance(event, dict) and event.get("type") == "status":
                        break
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
        return [self.get("/view?" + urllib.parse.urlencode(f)) for f in files if f["type"] == "output"]

    def cancel(self) -> None:
        """Stop the run that is going on."""
        self.post("/interrupt", {})


def _refusal(detail: Json) -> str:
    lines = [detail.get("error", {}).get("message", "refused")]
    for node in detail.get("node_errors", {}).values():
        lines += [f"{node['class_type']}: {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(lines)


class Events:
    """The server's websocket, read only: frames of text are JSON, frames of bytes are previews.

    A server sends each client, by the id under which workflows are queued, its own progress.
    """

    def __init__(self, url: str, client_id: str) -> None:
        place = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "127.0.0.1", place.port or 80), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {place.path}/ws?clientId={client_id} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._data = b""
        self._kind = 1
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, self._data = self._data.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(f"the server offers no websocket: {head.decode(errors='replace')}")

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def until(self, deadline: float) -> Iterator[Json | bytes]:
        """Yield messages until a moment of `time.monotonic`."""
        message = b""
        while True:
            while (frame := self._frame()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._socket.settimeout(left)
                try:
                    self._receive()
                except TimeoutError:
                    return
            final, kind, payload = frame
            if kind <= 2:  # 1 text, 2 bytes, 0 the rest of either
                self._kind = kind or self._kind
                message += payload
                if final:
                    yield json.loads(message) if self._kind == 1 else message
                    message = b""
            elif kind == 9:  # a ping, to be answered (masked with zeros) or the server hangs up
                self._socket.sendall(struct.pack(">BB4x", 0x8A, 0x80 | len(payload)) + payload)

    def _receive(self) -> None:
        chunk = self._socket.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the server has closed the connection; did it stop?")
        self._data += chunk

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """Cut one frame off what has been received, or return None when it is not whole yet."""
        if len(self._data) < 2:
            return None
        first, length = self._data[0], self._data[1] & 0x7F  # a server's frames are not masked
        start = {126: 4, 127: 10}.get(length, 2)
        if len(self._data) < start:
            return None
        if start > 2:
            length = int.from_bytes(self._data[2:start], "big")
        if len(self._data) < start + length:
            return None
        payload, self._data = self._data[start : start + length], self._data[start + length :]
        return bool(first & 0x80), first & 0x0F, payload
