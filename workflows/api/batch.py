"""Run a workflow for every picture of a folder, on one or several ComfyUI servers. Standard library only: copy it.

    python workflows/api/batch.py photos -o enlarged
    python workflows/api/batch.py photos -o enlarged --server http://10.0.0.5:8188 --server http://10.0.0.6:8188 \
        --set upscale.temperature=0.6 --seed-per-image

posts upscale.json beside this file (or --workflow FILE, in API format) with each picture in its Load Image node, to
whichever server is free, and saves what comes back under the same sub-folders. OUT/batch.csv has a row for each
picture: server, seed, files, what the nodes have said (scores, notes), seconds, error. Stop it at any moment, even by
force, and start it again: what is done is not done again. No file is ever written over. A picture that fails is tried
again, on another server if there is one; the exit status is 1 if some are left.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import io
import json
import os
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLUMNS = ("image", "server", "seed", "outputs", "texts", "seconds", "error", "wish")
SEEDS = ("seed", "noise_seed")
GONE = 3  # failures to reach a server, one after the other, after which nobody waits for it

Json = dict[str, Any]


class Failed(Exception):
    """A picture could not be done; the message says why."""


class Unreachable(Exception):
    """A server does not answer."""


# ---------------------------------------------------------------------------------------------------------------------
# what to do


@dataclass
class Picture:
    """A picture to run the workflow for.

    Attributes:
        path: The file.
        name: Its path below the folder.
        tried: Servers that have failed with it.
        error: What the last of them said.
    """

    path: Path
    name: str
    tried: list[str] = field(default_factory=list[str])
    error: str = ""


def find(folder: Path, out: Path) -> list[Picture]:
    """List the pictures of a folder, at any depth.

    Args:
        folder: The folder.
        out: Where results go; nothing is looked for there.

    Returns:
        The pictures, by name.
    """
    files = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
    results = out.resolve() if folder.resolve() in out.resolve().parents else None
    inside = [p for p in files if results not in p.resolve().parents]
    return sorted((Picture(p, p.relative_to(folder).as_posix()) for p in inside), key=lambda picture: picture.name)


def changed(workflow: Json, settings: list[str]) -> Json:
    """Set inputs of a workflow.

    Args:
        workflow: In API format.
        settings: `node.input=value`; the node by its id, or by its class if there is one of it; the value as JSON, or
            else as it stands.

    Returns:
        A changed copy.

    Raises:
        ValueError: A setting names no input.
    """
    made = copy.deepcopy(workflow)
    for setting in settings:
        place, equals, text = setting.partition("=")
        name, dot, key = place.rpartition(".")
        found = [id for id, node in made.items() if name in (id, node["class_type"])]
        if not equals or not dot or len(found) != 1:
            raise ValueError(f"Expected NODE.INPUT=VALUE with a node among {', '.join(made)}; got {setting!r}.")
        try:
            made[found[0]]["inputs"][key] = json.loads(text)
        except ValueError:
            made[found[0]]["inputs"][key] = text
    return made


def image_node(workflow: Json, named: str | None) -> str:
    """Find the node that loads the picture.

    Args:
        workflow: In API format.
        named: Its id, or None for the only Load Image there is.

    Returns:
        Its id.

    Raises:
        ValueError: There is none, or there are several.
    """
    found = [id for id, node in workflow.items() if node["class_type"] == "LoadImage"]
    if named is not None and named in workflow:
        return named
    if named is not None or len(found) != 1:
        raise ValueError(f"Name the node that loads the picture with --image-node; there are {', '.join(workflow)}.")
    return found[0]


def seeded(workflow: Json, name: str | None) -> tuple[Json, str]:
    """Give every picture a seed of its own, which depends on its name alone.

    Args:
        workflow: In API format.
        name: Of the picture; None to leave the seeds as they are.

    Returns:
        A changed copy, and the seeds in it.
    """
    made, seeds = copy.deepcopy(workflow), list[str]()
    for node in made.values():
        for key in SEEDS:
            if type(node["inputs"].get(key)) is int:
                node["inputs"][key] += 0 if name is None else zlib.crc32(name.encode())
                seeds.append(str(node["inputs"][key]))
    return made, " ".join(seeds)


# ---------------------------------------------------------------------------------------------------------------------
# a server


class Server:
    """One ComfyUI, spoken to over HTTP."""

    def __init__(self, url: str, timeout: float) -> None:
        """Remember the address.

        Args:
            url: For example `http://127.0.0.1:8188`.
            timeout: Seconds that a picture may take.

        Raises:
            ValueError: It is no address of a server.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"Expected the address of a server, such as http://127.0.0.1:8188; got {url!r}.")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.id = uuid.uuid4().hex

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """Fetch a path, or send a body to it."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if body else {})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Failed(_refusal(error.read()) or f"{path.split('?')[0]}: {error}") from None
        except OSError as error:
            raise Unreachable(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None

    def upload(self, data: bytes, name: str) -> str:
        """Put a picture into the input folder; its name there carries its content's hash, so that none is written over.

        Args:
            data: The file.
            name: Its name.

        Returns:
            The name to give to Load Image.
        """
        edge = uuid.uuid4().hex
        name = f"{hashlib.sha256(data).hexdigest()[:12]}-{name}".replace('"', "_")
        fields = {"overwrite": "true", "subfolder": "batch"}
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        parts.append(
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
        )
        parts.append(data + f"\r\n--{edge}--\r\n".encode())
        answer = json.loads(self.ask("/upload/image", b"".join(parts), f"multipart/form-data; boundary={edge}"))
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def run(self, workflow: Json) -> Json:
        """Queue a workflow, and wait until it has ended.

        Args:
            workflow: In API format.

        Returns:
            What its nodes have put out, by node id.

        Raises:
            Failed: The server refused it, a node failed, or it took too long.
        """
        run = json.loads(self.ask("/prompt", json.dumps({"prompt": workflow, "client_id": self.id}).encode()))
        id, deadline, pause, missing = run["prompt_id"], time.monotonic() + self.timeout, 0.1, 0
        while id not in (history := json.loads(self.ask(f"/history/{id}"))):
            if time.monotonic() > deadline:
                raise Failed(f"It did not end within {self.timeout:.0f} s.")
            waiting = json.loads(self.ask("/queue"))
            known = [item[1] for kind in ("queue_running", "queue_pending") for item in waiting[kind]]
            missing = 0 if id in known else missing + 1
            if missing > 5:  # between the queue and the history it is in neither, for a moment
                raise Failed("The server has lost it; was it restarted?")
            time.sleep(pause)
            pause = min(1.0, pause * 1.3)
        for kind, data in history[id].get("status", {}).get("messages", []):
            if kind == "execution_error":
                raise Failed(f"{data['node_type']}: {data['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise Failed("It was cancelled.")
        return history[id]["outputs"]

    def fetch(self, file: Json) -> bytes:
        """Fetch a file that a node has saved."""
        keys = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        return self.ask("/view?" + urllib.parse.urlencode(keys))


def _refusal(body: bytes) -> str:
    """Say what a server has against a workflow."""
    try:
        detail = json.loads(body)
        lines = [detail["error"]["message"]]
        for node in detail.get("node_errors", {}).values():
            lines += [f"{node['class_type']}: {e['message']}: {e['details']}" for e in node["errors"]]
    except (ValueError, KeyError, TypeError):
        return ""
    return "; ".join(lines)


def files(outputs: Json) -> list[Json]:
    """List the files that nodes have saved for good.

    Args:
        outputs: By node id.

    Returns:
        Name, folder and type of each, in order.
    """
    lists = (value for output in outputs.values() for value in output.values() if isinstance(value, list))
    items = (item for items in lists for item in items if isinstance(item, dict))
    return [item for item in items if item.get("type") == "output" and item.get("filename")]


def texts(outputs: Json) -> Json:
    """Collect what nodes have said beside: scores, notes, facts.

    Args:
        outputs: By node id.

    Returns:
        The same, without pictures.
    """
    said = {
        id: {
            key: value
            for key, value in output.items()
            if isinstance(value, list) and value and not any(isinstance(item, (dict, bool)) for item in value)
        }
        for id, output in outputs.items()
    }
    return {id: output for id, output in said.items() if output}


# ---------------------------------------------------------------------------------------------------------------------
# the table


class Table:
    """OUT/batch.csv: a row for each picture. It is written before the files that it names, so none has no owner."""

    def __init__(self, out: Path) -> None:
        """Read what is there; of several rows of a picture the last counts, and none that was cut off.

        Args:
            out: The folder of the results.
        """
        self.out, self.path = out, out / "batch.csv"
        self.rows: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        for left in out.rglob("*.partial"):  # by a run that was ended by force
            if re.search(r"\.\d+\.partial$", left.name):
                left.unlink()
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if len(row.get("wish") or "") == 16:
                        self.rows[row["image"]] = row
            self.rewrite()

    def is_done(self, name: str, wish: str) -> bool:
        """Whether a picture's results are there, made as wished."""
        row = self.rows.get(name)
        if row is None or row["error"] or row["wish"] != wish:
            return False
        return all((self.out / file).is_file() for file in json.loads(row["outputs"]))

    def keep(self, row: dict[str, Any], data: list[tuple[str, bytes]]) -> list[str]:
        """Save the results of a picture, each whole or not at all, none over a file that is not its own.

        Args:
            row: By column, without the outputs.
            data: Suffix and content of each file.

        Returns:
            The names of the files, below OUT.
        """
        with self._lock:
            before = self.rows.get(row["image"])
            mine = set(json.loads(before["outputs"])) if before and before["wish"] == row["wish"] else set[str]()
            stem = Path(row["image"]).with_suffix("").as_posix()
            taken = {file for other in self.rows.values() for file in json.loads(other["outputs"])} - mine
            names: list[str] = []
            for k, (suffix, _) in enumerate(data, start=1):
                tries = [f"{stem}-{k:02d}{f'_{n}' if n > 1 else ''}{suffix}" for n in range(1, 10_000)]
                names.append(next(name for name in tries if name not in taken and self._is_free(name, mine)))
            partial = [self.out / f"{name}.{os.getpid()}.partial" for name in names]
            for path, (_, content) in zip(partial, data, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._append({**row, "outputs": json.dumps(names)})
            for path, name in zip(partial, names, strict=True):
                os.replace(path, self.out / name)
            return names

    def _is_free(self, name: str, mine: set[str]) -> bool:
        return name in mine or not (self.out / name).exists()

    def fail(self, row: dict[str, Any]) -> None:
        """Note that a picture could not be done."""
        with self._lock:
            before = self.rows.get(row["image"])
            same = before is not None and before["wish"] == row["wish"]
            self._append({**row, "outputs": before["outputs"] if before and same else "[]"})

    def rewrite(self) -> None:
        """Write one row for each picture, by name, in place of all rows."""
        partial = self.path.with_name(f"batch.csv.{os.getpid()}.partial")
        rows = [self.rows[name] for name in sorted(self.rows)]
        partial.write_text(_lines(COLUMNS, *(tuple(row[c] for c in COLUMNS) for row in rows)), encoding="utf-8")
        os.replace(partial, self.path)

    def _append(self, row: dict[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.rows[row["image"]] = {name: str(row.get(name, "")) for name in COLUMNS}
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write((_lines(COLUMNS) if fresh else "") + _lines(tuple(self.rows[row["image"]].values())))
            file.flush()
            os.fsync(file.fileno())


def _lines(*rows: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# the work


class Batch:
    """All pictures, shared among the servers: whoever is free takes the next."""

    def __init__(self, table: Table, servers: list[Server], make: Callable[[Picture], tuple[Json, str, str]]) -> None:
        """Begin.

        Args:
            table: Where results go.
            servers: At least one.
            make: Makes the workflow of a picture, without the picture's name; its seeds; and the name of the wish.
        """
        self.table, self.servers, self.make = table, servers, make
        self.failed: list[Picture] = []
        self._left: list[Picture] = []
        self._busy, self._over, self._total = 0, 0, 0
        self._alive = {server.url for server in servers}
        self._changed = threading.Condition()
        self._raised: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def run(self, pictures: list[Picture], node: str, tries: int) -> None:
        """Work until nothing is left.

        Args:
            pictures: What to do.
            node: The node that loads the picture.
            tries: How often each is tried.
        """
        self._left, self._total = list(pictures), len(pictures)
        threads = [
            threading.Thread(target=self._serve, args=(server, node, tries), daemon=True) for server in self.servers
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.2)  # so that Ctrl-C is heard
            time.sleep(0 if threads[0].is_alive() else 0.1)
            if not self._raised.empty():
                raise self._raised.get()
        for picture in self._left:  # no server is left
            self._give_up(picture, "", picture.error or "No server answers.")

    def _serve(self, server: Server, node: str, tries: int) -> None:
        unreachable = 0
        try:
            for picture in self._take(server):
                start = time.monotonic()
                try:
                    workflow, seed, wish = self.make(picture)
                    data = picture.path.read_bytes()
                    workflow[node]["inputs"]["image"] = server.upload(data, picture.path.name)
                    outputs = server.run(workflow)
                    found = files(outputs)
                    if not found and not texts(outputs):
                        raise Failed("The workflow has saved nothing and said nothing. Does it end in Save Image?")
                    results = [(Path(file["filename"]).suffix, server.fetch(file)) for file in found]
                except (Failed, Unreachable, OSError) as error:
                    unreachable = unreachable + 1 if isinstance(error, Unreachable) else 0
                    self._again(picture, server, str(error), tries, unreachable >= GONE)
                    if unreachable >= GONE:
                        return
                    time.sleep(unreachable)
                    continue
                unreachable = 0
                seconds = time.monotonic() - start
                row = {"image": picture.name, "server": server.url, "seed": seed, "wish": wish}
                row |= {"texts": json.dumps(texts(outputs)), "seconds": f"{seconds:.2f}"}
                names = self.table.keep(row, results)
                with self._changed:
                    self._over += 1
                    self._busy -= 1
                    self._changed.notify_all()
                    say(f"{self._over}/{self._total} {picture.name}  {server.url}  {seconds:.1f} s  {' '.join(names)}")
        except BaseException as error:
            self._raised.put(error)
            raise

    def _take(self, server: Server) -> Iterator[Picture]:
        """Give what a server should do next; first what it has not failed with."""
        while True:
            with self._changed:
                while True:
                    fitting = [p for p in self._left if server.url not in p.tried or not self._alive - set(p.tried)]
                    if fitting:
                        break
                    if not self._left and not self._busy:
                        return
                    self._changed.wait(0.5)
                self._left.remove(fitting[0])
                self._busy += 1
            yield fitting[0]

    def _again(self, picture: Picture, server: Server, error: str, tries: int, gone: bool) -> None:
        with self._changed:
            picture.tried.append(server.url)
            picture.error = error
            self._busy -= 1
            if gone:
                self._alive.discard(server.url)
                say(f"{error}: going on without it.")
            if len(picture.tried) < tries or (gone and self._alive):
                self._left.append(picture)
                say(f"{picture.name} failed on {server.url}, and will be tried again: {error}")
            else:
                self._give_up(picture, server.url, error)
            self._changed.notify_all()

    def _give_up(self, picture: Picture, server: str, error: str) -> None:
        self._over += 1
        self.failed.append(picture)
        picture.error = error
        _, seed, wish = self.make(picture)
        self.table.fail({"image": picture.name, "server": server, "seed": seed, "wish": wish, "error": error})
        say(f"{self._over}/{self._total} {picture.name} failed: {error}")


def say(line: str) -> None:
    """Tell the person who waits."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run a workflow for every picture of a folder, on ComfyUI servers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results and batch.csv")
    parser.add_argument("--server", action="append", metavar="URL", help="(default: http://127.0.0.1:8188); repeatable")
    parser.add_argument("--workflow", type=Path, default=HERE / "upscale.json", help="in API format")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="repeatable")
    parser.add_argument("--image-node", metavar="NODE", help="(default: the only Load Image)")
    parser.add_argument("--seed-per-image", action="store_true", help="add a number made of its name to every seed")
    parser.add_argument("--tries", type=int, default=2, help="for each picture (default: 2)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each picture (default: 3600)")
    options = parser.parse_args()
    try:
        workflow = changed(json.loads(options.workflow.read_text(encoding="utf-8")), options.set)
        node = image_node(workflow, options.image_node)
        servers = [Server(url, options.timeout) for url in dict.fromkeys(options.server or ["http://127.0.0.1:8188"])]
        pictures = find(options.folder, options.out)
        if not pictures:
            raise ValueError(
                f"No pictures in {options.folder}: expected files ending in {', '.join(sorted(SUFFIXES))}."
            )
        table = Table(options.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    def make(picture: Picture) -> tuple[Json, str, str]:
        made, seed = seeded(workflow, picture.name if options.seed_per_image else None)
        told = {**made, node: {**made[node], "inputs": {**made[node]["inputs"], "image": picture.name}}}
        size = picture.path.stat() if picture.path.exists() else None
        stamp = "" if size is None else f"{size.st_size} {size.st_mtime_ns}"
        return made, seed, hashlib.sha256((json.dumps(told, sort_keys=True) + stamp).encode()).hexdigest()[:16]

    left = [picture for picture in pictures if not table.is_done(picture.name, make(picture)[2])]
    if len(left) < len(pictures):
        say(f"{len(pictures) - len(left)} of {len(pictures)} are done already.")
    batch = Batch(table, servers, make)
    try:
        batch.run(left, node, options.tries)
    except KeyboardInterrupt:
        say("Stopped. Start it again to go on.")
        return 130
    if table.rows:
        table.rewrite()
    if batch.failed:
        say(f"{len(batch.failed)} of {len(pictures)} could not be done:")
        for picture in batch.failed:
            say(f"  {picture.name}: {picture.error}")
    return 1 if batch.failed else 0


if __name__ == "__main__":
    sys.exit(main())
