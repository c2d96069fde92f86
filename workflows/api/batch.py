"""Run a story for every picture of a folder, on one or several ComfyUI servers. Standard library only: copy it.

    python workflows/api/batch.py photos -o enlarged
    python workflows/api/batch.py photos -o colored --workflow colourings --set color.seed=3 --server http://10.0.0.5:8188

gives each picture to a free server, in place of the first that the workflow loads, and saves what comes back under the
same sub-folders; OUT/batch.jsonl tells how each ended. Started again, it does what is missing, failed or set otherwise.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
Json = dict[str, Any]


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
    """Fetch an address, or send a body to it. ConnectionError: nobody answers. RuntimeError: the answer is no."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except OSError as error:
        if not isinstance(error, urllib.error.HTTPError) or error.code in (502, 503, 504):  # the latter of a proxy
            raise ConnectionError(f"{url} does not answer: {error}") from None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            said = json.load(error)
            causes = [(node["class_type"], e) for node in said["node_errors"].values() for e in node["errors"]]
            lines = [f"{kind}: {e['message']}: {e['details']}" for kind, e in causes]
            raise RuntimeError("; ".join(lines) or said["error"]["message"]) from None
        raise RuntimeError(f"{url}: {error}") from None


def upload(server: str, path: Path) -> str:
    """Put a picture into a server's input folder and return its name there; another of that name stays as it is."""
    data, name = path.read_bytes(), path.name.replace('"', "_")
    edge = hashlib.sha256(data).hexdigest()
    body = f'--{edge}\r\nContent-Disposition: form-data; name="subfolder"\r\n\r\nbatch\r\n'
    body += f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    whole = body.encode() + data + f"\r\n--{edge}--\r\n".encode()
    answer = json.loads(ask(f"{server}/upload/image", whole, f"multipart/form-data; boundary={edge}"))
    return f"{answer['subfolder']}/{answer['name']}"


def run(server: str, workflow: Json) -> Json:
    """Queue a workflow, wait until it has ended, and return what its nodes have put out, by node id."""
    # Without a client_id, old hosts leave out what they have at hand; recipes of our nodes need extra_pnginfo.
    body = {"prompt": workflow, "client_id": "batch", "extra_data": {"extra_pnginfo": {}}}
    id, missing = json.loads(ask(f"{server}/prompt", json.dumps(body).encode()))["prompt_id"], 0
    while id not in (history := json.loads(ask(f"{server}/history/{id}"))):
        queue = json.loads(ask(f"{server}/queue"))
        missing = 0 if id in [item[1] for items in queue.values() for item in items] else missing + 1
        if missing > 5:  # between the queue and the history it is in neither, for a moment
            raise ConnectionError(f"{server} has lost a run; was it restarted?")
        time.sleep(0.3)
    for kind, data in history[id].get("status", {}).get("messages", []):
        if kind in ("execution_error", "execution_interrupted"):
            raise RuntimeError(f"{data['node_type']}: {data.get('exception_message', 'cancelled').strip()}")
    return history[id]["outputs"]


def change(workflow: Json, setting: str) -> None:
    """Set an input of a workflow: `NODE.INPUT=VALUE`, the value as JSON or else as it stands."""
    place, _, value = setting.partition("=")
    node, _, key = place.rpartition(".")
    if node not in workflow or not value:
        raise ValueError(f"Expected NODE.INPUT=VALUE with a node among {', '.join(workflow)}; got {setting!r}.")
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    workflow[node]["inputs"][key] = value


def picture_node(workflow: Json) -> str:
    """Find the first node that loads a picture: Load Image, or a Flow Example of which not the folder is read."""
    wires = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, list)]
    for kind in ("LoadImage", "FlowcoreExample"):
        for id, node in workflow.items():
            if node["class_type"] == kind and [id, 2] not in wires:
                return id
    raise ValueError("This workflow loads no picture that those of a folder could replace.")


class Batch:
    """The pictures of a folder, shared among the servers: whoever is free takes the next."""

    def __init__(self, folder: Path, out: Path, workflow: Json, patience: int) -> None:
        self.folder, self.out, self.workflow, self.patience = folder, out, workflow, patience
        self.node, self.log, self.lock = picture_node(workflow), out / "batch.jsonl", threading.Lock()
        self.pictures: dict[str, Path] = {}  # by a key that says what is to be made, and of which content
        for path in sorted(folder.rglob("*")):
            ours = path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
            if ours and out.resolve() not in path.resolve().parents:
                content = [str(path.relative_to(folder)), (stat := path.stat()).st_size, stat.st_mtime_ns, workflow]
                self.pictures[hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]] = path
        if not self.pictures:
            raise ValueError(f"No pictures in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}.")
        self.failed, self.done = list[str](), set[str]()
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []:
            with contextlib.suppress(ValueError):  # a line that was cut off
                row = json.loads(line)
                if row["key"] in self.pictures and not row["error"] and all((out / f).is_file() for f in row["files"]):
                    self.done.add(row["key"])
        self.waiting = [key for key in self.pictures if key not in self.done]

    def serve(self, server: str) -> None:
        """Let a server work until nothing is left, or until it has been away for too long."""
        away = 0.0  # since when it has not answered
        while len(self.done) < len(self.pictures) and not (away and time.monotonic() - away > self.patience):
            with self.lock:
                key = self.waiting.pop(0) if self.waiting else ""
            if not key:  # another server is busy with the last ones, and may give them back
                time.sleep(0.3)
                continue
            try:
                loader = {"class_type": "LoadImage", "inputs": {"image": upload(server, self.pictures[key])}}
                outputs = run(server, {**self.workflow, self.node: loader})
                self.note(key, server, outputs, self.save(key, server, outputs))
                away = 0.0
            except ConnectionError as error:
                self.waiting.append(key)
                if not away:
                    print(f"{error}. Waiting for it, {self.patience} s at most.", flush=True)
                away = away or time.monotonic()
                time.sleep(1)
            except Exception as error:  # whatever it is, the other pictures go on
                self.note(key, server, {}, [], str(error))

    def save(self, key: str, server: str, outputs: Json) -> list[str]:
        """Save the files that a run has made, each whole or not at all; return their names below the folder."""
        items = [item for output in outputs.values() for value in output.values() for item in value]
        stem = self.pictures[key].relative_to(self.folder).with_suffix("").as_posix()
        names = list[str]()
        for item in items:
            if isinstance(item, dict) and item.get("type") == "output":
                names.append(f"{stem}_{key}_{len(names) + 1:02d}{Path(item['filename']).suffix}")
                path = self.out / names[-1]
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.partial")
                partial.write_bytes(ask(f"{server}/view?{urllib.parse.urlencode(item)}"))
                partial.replace(path)
        return names

    def note(self, key: str, server: str, outputs: Json, files: list[str], error: str = "") -> None:
        """Write down how a picture has ended, and say so."""
        name = self.pictures[key].relative_to(self.folder).as_posix()
        self.done.add(key)
        self.failed += [f"  {name}: {error}"] if error else []
        row = {"image": name, "key": key, "server": server, "error": error, "files": files, "outputs": outputs}
        with self.lock, self.log.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row))
        print(f"{name}  {server}  {f'failed: {error}' if error else ' '.join(files)}", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run a story for every picture of a folder, on ComfyUI servers.")
    add = parser.add_argument
    add("folder", type=Path, help="of pictures, and of folders of pictures")
    add("-o", "--out", type=Path, required=True, help="where results go")
    add("--workflow", default="upscale", help="a story beside this file, or a file in API format (default: upscale)")
    add("--server", action="append", help="its address; may be repeated (default: http://127.0.0.1:8188)")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="another value; may be repeated")
    add("--wait", type=int, default=300, help="seconds to wait for a server that does not answer (default: 300)")
    options = parser.parse_args()
    servers = [url.rstrip("/") for url in options.server or ["http://127.0.0.1:8188"]]
    try:
        if any(not url.startswith(("http://", "https://")) for url in servers):
            raise ValueError(f"Expected addresses such as http://127.0.0.1:8188; got {' '.join(servers)}.")
        story = Path(__file__).with_name(f"{options.workflow}.json")
        workflow = json.loads((story if story.exists() else Path(options.workflow)).read_text(encoding="utf-8"))
        for setting in options.set:
            change(workflow, setting)
        batch = Batch(options.folder, options.out, workflow, options.wait)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(batch.pictures) - len(batch.waiting)} of {len(batch.pictures)} are done already.", flush=True)
    for server in servers:
        threading.Thread(target=batch.serve, args=(server,), daemon=True).start()
    while threading.active_count() > 1:  # not join, which does not hear Ctrl-C everywhere
        time.sleep(0.1)
    failed = [*batch.failed, *(f"  {batch.pictures[key]}: no server is left" for key in batch.waiting)]
    print(f"{len(failed)} of {len(batch.pictures)} could not be done.", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit("Stopped. Start it again to go on.")
