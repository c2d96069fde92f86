"""Run a workflow of this folder on a ComfyUI over HTTP. Standard library only: copy it into your own script.

    python workflows/api/client.py photo.jpg other.png --temperature 0.8 --seed 1 --samples 4

uploads each picture, queues upscale.json beside this file with these values, shows progress and saves what comes back.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Json = dict[str, Any]


class RunError(RuntimeError):
    """The server refused a workflow, or a node failed; the message says which and why.

    Attributes:
        detail: What the server sent, as it is.
    """

    def __init__(self, message: str, detail: Json) -> None:
        """Keep the message and what it is made from."""
        super().__init__(message)
        self.detail = detail


class Client:
    """One ComfyUI server, spoken to over HTTP."""

    def __init__(self, url: str, timeout: float = 60) -> None:
        """Remember the address.

        Args:
            url: For example `http://127.0.0.1:8188`.
            timeout: Seconds to wait for one answer.

        Raises:
            ValueError: It is no address of a server.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"Expected the address of a server, such as http://127.0.0.1:8188; got {url!r}.")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.id = uuid.uuid4().hex

    def get(self, path: str) -> bytes:
        """Fetch a path of the server.

        Args:
            path: Beginning with a slash.

        Returns:
            The body.
        """
        with urllib.request.urlopen(self.url + path, timeout=self.timeout) as answer:  # noqa: S310 (see __init__)
            return answer.read()

    def get_json(self, path: str) -> Any:
        """Fetch a path of the server that answers in JSON."""
        return json.loads(self.get(path))

    def post(self, path: str, body: bytes | Json, kind: str = "application/json") -> bytes:
        """Send a body to a path of the server.

        Args:
            path: Beginning with a slash.
            body: Bytes, or what to send as JSON.
            kind: The content type.

        Returns:
            The body of the answer.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind})  # noqa: S310
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
            return answer.read()

    def upload(self, path: Path, name: str | None = None) -> str:
        """Upload a picture into the server's input folder.

        Args:
            path: The file.
            name: Its name there; the file's own by default.

        Returns:
            The name to give to LoadImage.
        """
        edge = uuid.uuid4().hex
        name = (name or path.name).replace('"', "_")
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n" + path.read_bytes() + b"\r\n",
            f"--{edge}--\r\n".encode(),
        ]
        answer = json.loads(self.post("/upload/image", b"".join(parts), f"multipart/form-data; boundary={edge}"))
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def queue(self, workflow: Json) -> str:
        """Queue a workflow in API format.

        Args:
            workflow: Node id to node.

        Returns:
            The id of the run.

        Raises:
            RunError: The server refused it.
        """
        try:
            answer = json.loads(self.post("/prompt", {"prompt": workflow, "client_id": self.id}))
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            detail = json.loads(error.read())
            raise RunError(_refusal(detail), detail) from None
        return answer["prompt_id"]

    def wait(self, run: str, on_event: Callable[[Json | bytes], None] | None = None, timeout: float = 600) -> Json:
        """Wait until a run has ended.

        Args:
            run: What `queue` returned.
            on_event: Called with every message of the server meanwhile: JSON, or the bytes of a preview.
            timeout: Seconds to wait at most.

        Returns:
            The run's entry in the server's history.

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
        """Fetch the files that a run has saved.

        Args:
            entry: What `wait` returned.

        Returns:
            The files, in order.
        """
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
    """The server's websocket, read only: frames of text are JSON, frames of bytes are previews."""

    def __init__(self, url: str, client_id: str) -> None:
        """Connect.

        Args:
            url: The server's address.
            client_id: The id under which workflows are queued; the server sends each client its own progress.
        """
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
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
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


class ProgressLine:
    """Shows a run's progress on one line of the console."""

    def __init__(self, title: str) -> None:
        """Begin a line."""
        self.title = title
        self.start = time.monotonic()

    def __call__(self, event: Json | bytes) -> None:
        """Redraw the line when an event carries progress."""
        if isinstance(event, dict) and event.get("type") == "progress":
            done, total = event["data"]["value"], max(1, event["data"]["max"])
            bar = "#" * round(20 * done / total)
            self._show(f"[{bar:<20}] {100 * done // total:3d}%")

    def end(self, word: str = "done") -> None:
        """Finish the line."""
        self._show(f"{word} in {time.monotonic() - self.start:.1f} s".ljust(40) + "\n")

    def _show(self, text: str) -> None:
        sys.stdout.write(f"\r{self.title}  {text}")
        sys.stdout.flush()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Upscale pictures on a ComfyUI with flowcore, over HTTP.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8188")
    parser.add_argument("--model", default="srflow-x4")
    parser.add_argument("--temperature", type=float, help="default: the model's own, with its own calm_edges")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("output"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    client = Client(options.url)
    workflow = json.loads((HERE / "upscale.json").read_text())
    workflow["model"]["inputs"]["model_name"] = options.model
    workflow["upscale"]["inputs"] |= {"seed": options.seed, "samples": options.samples}
    if options.temperature is not None:
        workflow["upscale"]["inputs"]["temperature"] = options.temperature
    try:
        for picture in options.pictures:
            workflow["photo"]["inputs"]["image"] = client.upload(picture)
            line = ProgressLine(picture.name)
            entry = client.wait(client.queue(workflow), line)
            line.end()
            for index, data in enumerate(client.pictures(entry)):
                path = options.out / f"{picture.stem}-{options.seed + index}.png"
                path.write_bytes(data)
                sys.stdout.write(f"  {path}\n")
    except (RunError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
