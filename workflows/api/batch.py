"""Run a story for every picture of a folder, on one or several ComfyUI servers. Standard library only: copy it.

    python workflows/api/batch.py photos -o enlarged
    python workflows/api/batch.py photos -o colored --workflow colourings --set color.seed=3 --server http://10.0.0.5:8188

sends each picture to a free server, where it replaces the first picture that the workflow loads, and saves the results
in the same sub-folders. OUT/manifest.csv lists results and failures, like that of `python -m flowcore`; OUT/batch.jsonl
has the details. Run again, it makes what is missing, has failed, or has other settings. Paths of results go to stdout,
all else to stderr. Exit status: 0 if all is done, 3 if some pictures failed, 1 if all failed or it had to stop, 2 if it
could not start, and 130 after Ctrl-C or SIGTERM, which also cancel its runs on the servers.
"""

import argparse
import contextlib
import csv
import errno
import functools
import hashlib
import http.client
import io
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOSSES = """A server with flowcore loads pictures with Flow Example and saves results with Save Flow Picture: they keep
16 bits, color profile, EXIF, XMP and resolution, and refuse damaged files. Other servers use Load Image, which reads 8
bits and fills in what is missing, and Save Image, which writes 8 bits and nothing else. Alpha is kept if a workflow
connects masks to Save Flow Picture (--set 'save.mask=["photo", 1]'). `python -m flowcore` and Flow Folder keep it."""
SUFFIXES = {*re.findall(r"\.\w+", ".avif.bmp.gif.j2k.jp2.jpeg.jpg.jpx.pbm.pgm.png.pnm.ppm.tga.tif.tiff.webp")}
# what a terminal would obey, in names of files
CONTROL = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F))}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors after which no file can be saved
COLUMNS = ["input", "output", "seed", "model", "model_sha256", "seconds", "note"]  # of every manifest.csv of flowcore
SAVING = "results are what nodes such as Save Image and Save Flow Picture save. Put one in place of Preview Image."
Json = dict[str, Any]


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
    """Get a URL, or post a body to it. ConnectionError if no server answers, RuntimeError if it refuses."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        if not isinstance(error, urllib.error.HTTPError) or error.code in (502, 503, 504):  # the latter of a proxy
            raise ConnectionError(f"{url} does not answer: {error}") from None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            refusal = json.load(error)
            raise RuntimeError(reasons(refusal["node_errors"]) or refusal["error"]["message"]) from None
        raise RuntimeError(f"{url}: {error}") from None


def ask_json(url: str, body: Json | None = None) -> Any:
    """Exchange JSON with a server; see `ask`."""
    answer = ask(url, None if body is None else json.dumps(body).encode())
    try:
        return json.loads(answer or b"null")
    except ValueError:
        raise RuntimeError(f"{url} does not answer as ComfyUI does. Is this its address?") from None


def reasons(node_errors: Json) -> str:
    """Format a server's `node_errors`: why it refuses nodes."""
    causes = [(node["class_type"], cause) for node in node_errors.values() for cause in node["errors"]]
    return "; ".join(f"{kind}: {cause['message']}: {cause['details']}" for kind, cause in causes)


def upload(server: str, name: str, data: bytes, folder: str, kind: str, *, replace: bool = False) -> str:
    """Put a picture into a folder of a server's "input" or "temp" folder; return how nodes name it there."""
    edge, name = hashlib.sha256(data).hexdigest(), re.sub(r"[^\w. -]", "_", name)[-50:]
    # The same picture is not written twice: another client may be reading it.
    parts = [("subfolder", folder), ("type", kind), *([("overwrite", "true")] if replace else [])]
    body = "".join(f'--{edge}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts)
    body += f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    whole = body.encode() + data + f"\r\n--{edge}--\r\n".encode()
    answer = json.loads(ask(f"{server}/upload/image", whole, f"multipart/form-data; boundary={edge}"))
    return f"{answer['subfolder']}/{answer['name']}{' [temp]' if kind == 'temp' else ''}"


def run(server: str, workflow: Json, limit: float = 0, stopped: threading.Event | None = None) -> Json:
    """Queue a workflow, wait until it has ended, for at most `limit` seconds of work, and return its nodes' outputs."""
    id, began = str(uuid.uuid4()), 0.0
    # Without a client_id, old hosts omit the outputs of cached nodes; recipes of our nodes need extra_pnginfo.
    body = {"prompt": workflow, "prompt_id": id, "client_id": "batch", "extra_data": {"extra_pnginfo": {}}}
    try:
        if refused := ask_json(f"{server}/prompt", body)["node_errors"]:  # it would run the others
            raise RuntimeError(f"{reasons(refused)}. Correct this in the workflow")
        while "outputs" not in (job := ask_json(f"{server}/api/jobs/{id}")):
            began = began or (time.monotonic() if job["status"] == "in_progress" else 0.0)
            late = limit and began and time.monotonic() - began > limit
            if late or (stopped and stopped.is_set()):
                raise RuntimeError(f"it took longer than {limit:g} s" if late else "stopped")
            time.sleep(0.3)
    except Exception:
        with contextlib.suppress(ConnectionError):
            # Hosts before 0.30 do not have the first page.
            pages: Json = {f"api/jobs/{id}/cancel": {}, "queue": {"delete": [id]}, "interrupt": {"prompt_id": id}}
            for page, order in pages.items():
                with contextlib.suppress(RuntimeError):
                    ask_json(f"{server}/{page}", order)
        raise
    for kind, data in job["execution_status"].get("messages", []):
        if kind in ("execution_error", "execution_interrupted"):
            raise RuntimeError(f"{data['node_type']}: {data.get('exception_message', 'cancelled').strip()}")
    return job["outputs"]


def refuse_cut_off(data: bytes) -> None:
    """Raise RuntimeError for a JPEG or PNG file without its end, which Load Image would fill in."""
    ends = {b"\xff\xd8": (b"\xff\xda", b"\xff\xd9"), b"\x89P": (b"IDAT", b"IEND")}
    start, end = ends.get(data[:2], (b"", b""))
    if data.rfind(end) < data.rfind(start):
        raise RuntimeError("the file is cut off")


@functools.cache
def describe(server: str, kind: str) -> Json:
    """Return what a server states about a class of nodes; {} if it has no such class."""
    return ask_json(f"{server}/object_info/{urllib.parse.quote(kind)}").get(kind, {})


def adapt(workflow: Json, node: str, name: str, ours: bool) -> Json:
    """Make a node of a workflow load a picture; for `ours`, load and save with nodes of flowcore, see LOSSES."""
    if not ours:
        return {**workflow, node: {"class_type": "LoadImage", "inputs": {"image": name}}}
    made: Json = {**workflow, node: {"class_type": "FlowcoreExample", "inputs": {"picture": name}}}
    for id, saving in made.items():
        if saving["class_type"] in ("SaveImage", "FlowcoreSave"):
            inputs = {"format": "png", "bits": "source", **saving["inputs"]}
            source = wire if isinstance(wire := inputs.get("source"), list) else name
            made[id] = {"class_type": "FlowcoreSave", "inputs": {**inputs, "source": source}}
    return made


def check(workflow: Json, places: list[tuple[str, str]], server: str) -> None:
    """Raise ValueError if a server lacks a node, an input or a value that was set, or if no node saves."""
    ask_json(f"{server}/api/jobs?limit=1")  # refused by hosts before 0.20
    for id, node in workflow.items():
        known = describe(server, node["class_type"]).get("input")
        if known is None:
            raise ValueError(f"{server} has no node {node['class_type']}.")
        inputs = {**known.get("required", {}), **known.get("optional", {})}
        for key in [key for place, key in places if place == id]:
            if key not in inputs:
                raise ValueError(f"{id} has no input {key!r}, but {', '.join(inputs)}.")
            (kind, limits), value = (*inputs[key], {})[:2], node["inputs"][key]
            choices = kind if isinstance(kind, list) else limits.get("options")
            low, high = limits.get("min", -float("inf")), limits.get("max", float("inf"))
            if choices and value not in choices and not isinstance(value, list):  # a wire
                raise ValueError(f"{id}.{key} is one of {', '.join(map(str, choices))}; got {value!r}.")
            number = type(value) in (int, float) and low <= value <= high
            if kind in ("INT", "FLOAT") and not number and not isinstance(value, list):
                raise ValueError(f"{id}.{key} is a number from {low} to {high}; got {value!r}.")
    kinds = [node["class_type"] for node in workflow.values()]
    saving = [kind for kind in kinds if not re.match("Preview|Flowcore(?!Save)", kind)]  # these show what they make
    if not any(describe(server, kind).get("output_node") for kind in saving):
        raise ValueError(f"This workflow saves nothing, but {SAVING}")


def files_of(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """List the files of a folder at any depth, linked folders included; say what is left out."""
    found = list[Path]()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=lambda e: say(f"Cannot be opened: {e}")):
        way = [os.path.realpath(p) for p in (here, *Path(os.path.abspath(here)).parents)]
        for path in [Path(here, name) for name in folders]:
            if any(f"{above}/".startswith(f"{os.path.realpath(path)}/") for above in way):
                say(f"A link that leads back, left out: {path}")
                folders.remove(path.name)
        found += [Path(here, name) for name in names]
    return sorted(found)


def change(workflow: Json, setting: str) -> tuple[str, str]:
    """Set an input of a workflow by `NODE.INPUT=VALUE`, the value as JSON or else as text; return node and input."""
    place, _, value = setting.partition("=")
    node, _, key = place.rpartition(".")
    if node not in workflow or not value:
        raise ValueError(f"Expected NODE.INPUT=VALUE with a node among {', '.join(workflow)}; got {setting!r}.")
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    workflow[node]["inputs"][key] = value
    return node, key


def load(name: str) -> Json:
    """Read a workflow in API format, a story beside this file or a file; ValueError if that fails."""
    stories = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}
    path = stories.get(name, Path(name))
    try:
        workflow = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read a workflow from {path}: {error}. Stories are {', '.join(stories)}.") from None
    nodes = workflow.values() if isinstance(workflow, dict) else [workflow]
    if all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        return workflow
    raise ValueError(f"{path} is not in API format. Open it in ComfyUI, choose Export (API), and name what that saves.")


def picture_node(workflow: Json) -> str:
    """Find the first node that loads a picture: Load Image, or a Flow Example whose folder is not connected."""
    wires = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, list)]
    for kind in ("LoadImage", "FlowcoreExample"):
        for id, node in workflow.items():
            if node["class_type"] == kind and [id, 2] not in wires:
                return id
    raise ValueError("This workflow loads no picture that those of a folder could replace.")


def encode(rows: list[list[str]]) -> bytes:
    """Write rows of a manifest."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8


def compact(manifest: Path) -> None:
    """Keep the last row per picture and result, and drop the failures of pictures that have a result now."""
    if not manifest.exists():
        return
    with manifest.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))
    if rows and rows[0] != COLUMNS:
        raise ValueError(f"{manifest} is something else than a list of results. Name another folder for them.")
    kept: dict[tuple[str, str], list[str]] = {}
    for row in [row for row in rows if len(row) == len(COLUMNS)]:  # others were cut off
        kept.pop((row[0], ""), None)
        kept[row[0], row[1]] = row
    save(manifest, encode([*kept.values()]))


def duration(seconds: float) -> str:
    """Format a duration, as `python -m flowcore` does."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


class Batch:
    """The pictures of a folder, distributed among servers: a free one takes the next."""

    def __init__(self, options: argparse.Namespace, workflow: Json) -> None:
        self.options, self.workflow, folder, out = options, workflow, options.folder, options.out
        self.node, self.log, self.manifest = picture_node(workflow), out / "batch.jsonl", out / "manifest.csv"
        names = [str(node["inputs"].get("model_name") or "") for node in workflow.values()]
        self.models, self.began = " ".join(filter(None, names)), time.monotonic()
        self.stopped, self.lock, self.problem = threading.Event(), threading.Lock(), ""
        self.failed, self.done, self.client = list[str](), set[str](), secrets.token_hex(4)
        self.pictures: dict[str, Path] = {}  # by a hash of the file's path, size and time, and of the workflow
        for path in files_of(folder, self.say):
            exists = os.path.exists(path)  # not so a broken link, or one to itself: it fails later, under its name
            named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            outside = Path(os.path.realpath(out)) not in Path(os.path.realpath(path)).parents
            if named and outside and (os.path.isfile(path) or not exists):
                facts = [path.stat().st_size, path.stat().st_mtime_ns] if exists else []
                content = json.dumps([str(path.relative_to(folder)), *facts, workflow])
                self.pictures[hashlib.sha256(content.encode()).hexdigest()[:12]] = path
        if not self.pictures:
            raise ValueError(f"No pictures in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}.")
        known = "" if options.again or not self.log.exists() else self.log.read_text(encoding="utf-8")
        for line in known.splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):  # a line that was cut off
                row = json.loads(line)
                if row["key"] in self.pictures and row["files"] and all((out / f).is_file() for f in row["files"]):
                    self.done.add(row["key"])
        self.waiting = [key for key in self.pictures if key not in self.done]
        self.there = len(self.done)

    def serve(self, server: str) -> None:
        """Let a server work until nothing is left, or until it has not answered for too long."""
        away = 0.0  # since when it has not answered
        while len(self.done) < len(self.pictures) and not self.stopped.is_set():
            if away and time.monotonic() - away > self.options.wait:
                return
            try:
                key = self.waiting.pop(0)
            except IndexError:  # another server is busy with the last ones, and may give them back
                time.sleep(0.3)
                continue
            try:
                self.do(key, server)
                away = 0.0
            except ConnectionError as error:
                self.waiting.append(key)
                if not away:
                    self.say(f"{error}. Waiting for it, {self.options.wait} s at most.")
                away = away or time.monotonic()
                time.sleep(1)
            except OSError as error:  # a file could not be written, and so could no other
                name = error.filename or self.log
                self.problem = f"{name} could not be saved: {error.strerror or error}. Nothing else is begun. Make room"
                self.stopped.set()

    def do(self, key: str, server: str) -> None:
        """Run the workflow on a picture, save its results, and list them or the failure."""
        path, out, began = self.pictures[key], self.options.out, time.monotonic()
        inside, outputs, notes, files, problem = path.relative_to(self.options.folder), {}, list[str](), list[str](), ""
        stem = re.sub(r"[\x00-\x1f\ud800-\udfff]", "_", inside.stem)  # control characters, and halves of characters
        stem = stem.encode()[:200].decode(errors="ignore")  # names hold 255 bytes
        try:
            outputs = self.make(path, key, server)
            items = [(kind, item) for output in outputs.values() for kind, each in output.items() for item in each]
            lines = [str(item).removeprefix(f"{path.name}: ") for kind, item in items if kind == "flowcore_notes"]
            notes = [*dict.fromkeys(lines)]
            for item in [item for _, item in items if isinstance(item, dict) and item.get("type") == "output"]:
                name = inside.with_name(f"{stem}_{key}_{len(files) + 1:02d}{Path(item['filename']).suffix}").as_posix()
                save(out / name, ask(f"{server}/view?{urllib.parse.urlencode(item)}"))
                files.append(name)
            problem = "" if files else f"nothing was saved, but {SAVING}"
        except Exception as error:  # one picture does not stop the others, unless they could not be saved either
            if isinstance(error, ConnectionError) or getattr(error, "errno", None) in FULL:
                raise
            if self.stopped.is_set():
                return
            files, problem = [], getattr(error, "strerror", None) or str(error) or type(error).__name__
        row = {"image": inside.as_posix(), "key": key, "server": server, "error": problem, "files": files}
        with self.lock, self.log.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({**row, "notes": notes, "outputs": outputs}))
        self.failed += [f"  {row['image']}: {problem}"] if problem else []
        seconds, lines = None if problem else round(time.monotonic() - began, 2), [str(out / name) for name in files]
        shared = ["", self.models, "", "" if problem else str(seconds), problem or " ".join(notes)]
        listed = encode([[str(path), line, *shared] for line in lines or [""]])
        with self.lock, self.manifest.open("ab") as file:
            file.write(listed if file.tell() else encode([COLUMNS]) + listed)
            self.done.add(key)
            count, total = len(self.done), len(self.pictures)
        pace = (time.monotonic() - self.began) / (count - self.there)
        ending = f"{count}/{total} {row['image']}  {server}  {f'failed: {problem}' if problem else ' '.join(files)}"
        ending += f"  about {duration(pace * (total - count))} to go" if count < total else ""
        self.say(*(f"{row['image']}: {note}" for note in notes), ending)
        report = {"input": str(path), "outputs": lines, "seconds": seconds, "notes": notes, "error": problem or None}
        lines = [json.dumps(report)] if self.options.json else lines
        try:
            sys.stdout.write("".join(f"{line.translate(CONTROL)}\n" for line in lines))  # at once: threads write
            sys.stdout.flush()
        except OSError as error:
            self.problem = f"Results cannot be listed on standard output: {error}"
            self.stopped.set()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes it in the end

    def make(self, path: Path, key: str, server: str) -> Json:
        """Send a picture and run the workflow on it; with --clean, empty its file, as no server deletes files."""
        # Another client may read the same picture on the same server while this one empties it.
        place, folder = ("temp", f"batch/{key}-{self.client}") if self.options.clean else ("input", f"batch/{key}")
        data = path.read_bytes()
        if not (ours := bool(describe(server, "FlowcoreSave"))):
            refuse_cut_off(data)
        name = upload(server, path.name, data, folder, place)
        try:
            workflow = adapt(self.workflow, self.node, name, ours)
            return run(server, workflow, self.options.limit, self.stopped)
        finally:
            if place == "temp":
                with contextlib.suppress(ConnectionError, RuntimeError):
                    upload(server, path.name, b"\0", folder, place, replace=True)

    def say(self, *lines: str, always: bool = False) -> None:
        """Write lines to stderr, unless --quiet."""
        if always or not self.options.quiet:
            with contextlib.suppress(OSError):
                sys.stderr.write("".join(f"{line.translate(CONTROL)}\n" for line in lines))


def save(path: Path, data: bytes) -> None:
    """Save a file, whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description="Run a story for every picture of a folder.", epilog=LOSSES)
    add = parser.add_argument
    add("folder", type=Path, help="folder of pictures, searched at any depth")
    add("-o", "--out", type=Path, required=True, help="folder for the results")
    add("--workflow", default="upscale", help="a story beside this file, or a file in API format (default: upscale)")
    add("--server", action="append", help="address of a server; repeatable (default: http://127.0.0.1:8188)")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="set an input of a node; repeatable")
    add("--wait", type=int, default=300, help="seconds to wait for a server that does not answer (default: 300)")
    text = "give up on a picture that takes a server longer"
    add("--time-limit", "--limit", dest="limit", type=float, default=0, metavar="SECONDS", help=text)
    add("--again", action="store_true", help="make pictures again that are done already")
    add("--clean", action="store_true", help="send pictures to the server's temporary folder, and empty them when done")
    add("--json", action="store_true", help="write one JSON object per line: input, outputs, seconds, notes, error")
    add("--quiet", action="store_true", help="write nothing but results and errors")
    return parser


def main() -> int:
    """Run the command line."""
    parser = build_parser()
    options = parser.parse_args()
    servers = [url.rstrip("/") for url in options.server or ["http://127.0.0.1:8188"]]
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be shown is escaped, as on stderr
    try:
        if not all(re.match(r"https?://([^/:]+|\[[^/]+\])(:\d+)?(/|$)", url) for url in servers):
            raise ValueError(f"Expected addresses such as http://127.0.0.1:8188; got {' '.join(servers)}.")
        workflow = load(options.workflow)
        places = [change(workflow, setting) for setting in options.set]
        batch = Batch(options, workflow)
        for server in servers:
            with contextlib.suppress(ConnectionError):  # it may come later
                check(adapt(workflow, batch.node, "", bool(describe(server, "FlowcoreSave"))), places, server)
        options.out.mkdir(parents=True, exist_ok=True)
        batch.log.open("a").close()  # so that an error is reported before the work
        compact(batch.manifest)
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
    batch.say(f"{len(batch.pictures) - len(batch.waiting)} of {len(batch.pictures)} are done already.")
    threads = [threading.Thread(target=batch.serve, args=(server,), daemon=True) for server in servers]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):  # not join, which Ctrl-C does not interrupt everywhere
            time.sleep(0.1)
    except KeyboardInterrupt:
        batch.stopped.set()  # each thread cancels its run
        with contextlib.suppress(KeyboardInterrupt):
            for thread in threads:
                thread.join(10)
        batch.say("Stopped. Start it again to go on.", always=True)
        return 130
    if batch.problem:
        batch.say(f"{batch.problem}. Start it again to go on.", always=True)
        return 1
    failed, total = batch.failed, len(batch.pictures)
    failed += [f"  {path}: no server is left" for key, path in batch.pictures.items() if key not in batch.done]
    with contextlib.suppress(OSError, ValueError):  # a manifest that is not compacted is complete, too
        compact(batch.manifest)
    if failed:
        batch.say(f"{len(failed)} of {total} could not be done.", *failed, always=True)
    counts = {"done": total - len(failed) - batch.there, f"of {total} were there already": batch.there}
    counts |= {"failed": len(failed)}
    summary = ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "0 done"
    batch.say(f"{summary}, in {duration(time.monotonic() - batch.began)}.")
    return (3 if len(failed) < total else 1) if failed else 0


if __name__ == "__main__":
    for number in [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores some
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
