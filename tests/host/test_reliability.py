"""Nothing breaks, nothing leaks, nothing is lost: in short, and in `make soak` for hours."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import comfyui
import pytest
from cases import LONG, tried
from client import RunError
from PIL import Image
from talk import HERE, WORKFLOWS, Host, graph, loader, newest, picture, until, upscale

from flowcore.models.latents_file import load_latents


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, and what must come of it."""

    kind: str  # for the table
    workflow: dict[str, Any]  # its node "digest" says what came of it
    refusal: tuple[str, ...] = ()  # words of the error that must come of it; none for a good one

    @property
    def key(self) -> str:
        """The same for prompts that must give the same."""
        return json.dumps(self.workflow)


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompt(kind: str, model: str, digest: dict[str, str] | None = None, **nodes: Any) -> Prompt:
    """A prompt that digests, and makes, what is named; by default the picture of the node "made"."""
    made = ("FlowcoreTestDigest", {"image": "made.0"} if digest is None else digest)
    return Prompt(kind, graph(model=loader(model), **nodes, digest=made))


def piece(number: int, height: int = 32, width: int = 32, **facts: Any) -> Any:
    return picture(fill=f"photo{number}", height=height, width=width, **facts)


def upscaling(number: int = 0, **inputs: Any) -> Prompt:
    """A small image of varying size, four times as large."""
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.8, "seed": number} | inputs
    image = piece(number, 8 + 5 * (number % 3), 10 + 4 * (number % 4))
    return prompt("upscale", "srflow-x4", image=image, made=("FlowcoreUpscale", asked))


def coloring(number: int = 0, sides: tuple[int, int] = (40, 48), points: str = "", **inputs: Any) -> Prompt:
    """A small gray image in colors; with points, spread as hints."""
    asked = {"temperature": 1.0, "seed": number, "working_size": 64, "image": "image.0", "model": "model.0"} | inputs
    nodes = {"image": piece(number, *sides, channels=1)}
    if points:
        nodes["hints"] = ("FlowcoreColorHints", {"image": "image.0", "points": points, "radius": 6})
        asked["hints"] = "hints.0"
    return prompt("colorize", "color-photos", **nodes, made=("FlowcoreColorize", asked))


def sampling(number: int = 0, model: str = "realnvp-photos", **inputs: Any) -> Prompt:
    """Images out of noise, and their latents."""
    asked = {"model": "model.0", "samples": 1, "temperature": 0.7, "seed": number} | inputs
    digest = {"image": "made.0", "latents": "made.1"}
    return prompt("sample", model, digest, made=("FlowcoreSample", asked))


def scoring(number: int = 0, batch: int = 1, **inputs: Any) -> Prompt:
    """Bits per dimension of pieces of a photograph."""
    asked = {"image": "image.0", "model": "model.0", "seed": number} | inputs
    nodes = {"image": piece(number, batch=batch), "made": ("FlowcoreScore", asked)}
    return prompt("score", "realnvp-photos", {"number": "made.0", "image": "made.1"}, **nodes)


def round_trip(number: int = 0, batch: int = 1) -> Prompt:
    """There and back: latents and the image again."""
    return prompt(
        "encode",
        "realnvp-photos",
        {"image": "made.0", "latents": "encoded.0"},
        image=piece(number, batch=batch),
        encoded=("FlowcoreEncode", {"image": "image.0", "model": "model.0"}),
        made=("FlowcoreDecode", {"latents": "encoded.0", "model": "model.0"}),
    )


def saving(number: int = 0, frames: int = 2, folder: str = "latents", items: int = 1) -> Prompt:
    """Latents into a file; with many frames and items, a large one: 3 kB each."""
    drawn = {"model": "model.0", "samples": items, "temperature": 0.7, "seed": number, "labels": "1"}
    return prompt(
        "save",
        "mnist-styles",
        {"latents": "made.0"},
        one=("FlowcoreSample", drawn),
        two=("FlowcoreVaryLatents", {"latents": "one.1", "seed": 1000 + number, "strength": 0.5}),
        made=("FlowcoreInterpolate", {"a": "one.1", "b": "two.0", "frames": frames, "mode": "slerp"}),
        kept=("FlowcoreSaveLatents", {"latents": "made.0", "filename_prefix": f"{folder}/soak"}),
    )


def bad(number: int) -> Prompt:
    """What must be refused, each with its own words: while it runs, or before."""
    side = 3 + number % 11
    made, nodes, words = (
        (upscaling, {"image": picture(fill="nan", height=side, width=side)}, (f"holds {3 * side * side} values",)),
        (upscaling, {"image": picture(batch=0, height=side)}, ("empty", f"{side}, 16")),
        (upscaling, {"image": picture(channels=2, height=side)}, (f"(1, 2, {side}, 16)",)),
        (sampling, {"model": loader("color-photos")}, ("Flow Colorize",)),
        (sampling, {"model": loader("srflow-x4")}, ("sample needs",)),
        (sampling, {"model": loader(f"nope{number}")}, (f"nope{number}",)),
        (scoring, {"image": picture(channels=5, height=32, width=32)}, ("channels", "5")),
        (functools.partial(coloring, working_size=99_999), {}, ("working_size", "99999")),
        (functools.partial(upscaling, samples=1000 + number), {}, ("samples", str(1000 + number))),
    )[number % 9]
    return Prompt("bad", graph(made(number).workflow, **nodes), words)


def good(number: int) -> Prompt:
    """One of many small prompts of every kind; the same number is the same prompt."""
    digits = functools.partial(sampling, model="mnist-styles", samples=3, labels="7, 1")
    kinds = (upscaling, coloring, sampling, scoring, round_trip, digits)
    return kinds[number % len(kinds)](number // len(kinds))


def variants() -> list[Prompt]:
    """The same picture and model in other ways: what is kept of one must not serve another."""
    colors: list[dict[str, Any]] = [{}, {"temperature": 0.3}, {"precision": "bfloat16"}, {"samples": 2}]
    ways = [*colors[:3], {"seed": 7}, *colors[3:], {"tile": 32}]
    return [*(upscaling(33, **way) for way in ways), *(coloring(33, **way) for way in colors)]


# --- what comes of them -----------------------------------------------------------------------------------------------


def outcome(host: Host, prompt: Prompt) -> tuple[str, str]:
    """Run a good prompt; fingerprints of every bit, and of the picture as a file has it."""
    digest = host.outputs(prompt.workflow)["digest"]
    return digest["bits"][0], digest["stored"][0]


def refused(host: Host, prompt: Prompt) -> None:
    with pytest.raises(RunError) as error:
        host.run(prompt.workflow)
    missing = [word for word in prompt.refusal if word.lower() not in str(error.value).lower()]
    assert not missing, f"{prompt.kind}: {missing} not in: {error.value}"


class Held(NamedTuple):
    memory: float  # MiB
    files: int  # and sockets
    threads: int


def held(process: int) -> Held:
    status = Path(f"/proc/{process}/status").read_text()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Held(int(facts["VmRSS"].split()[0]) / 1024, files, int(facts["Threads"]))


def settled(process: int, before: Held | None = None, seconds: float = 10) -> Held:
    """Look at a process when connections of clients that have gone are closed; or, at the latest, after some time."""
    deadline, found = time.monotonic() + seconds, held(process)
    while time.monotonic() < deadline and (
        before is None or found.files > before.files or found.threads > before.threads
    ):
        time.sleep(0.25)
        last, found = found, held(process)
        if before is None and last[1:] == found[1:]:
            break
    return found


def nothing_is_left(process: int, before: Held, now: Held | None = None) -> None:
    after = now or settled(process, before)
    assert after.threads <= before.threads
    names = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(link))
    assert after.files <= before.files, sorted(names)


ORDINARY = range(6)  # one prompt of every kind


@pytest.fixture
def process(host):
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into a process the Linux way")
    return host.server.process.pid


@newest
def test_prompts_leave_no_file_open_and_no_thread(host, process):
    for number in ORDINARY:
        outcome(host, good(number))
    before = settled(process)
    for number in range(6, 18):
        outcome(host, good(number))
    for number in range(5):
        refused(host, bad(number))
    nothing_is_left(process, before)


@pytest.mark.soak
def test_500_prompts_leave_memory_files_and_threads_where_they_were(tmp_path):
    # Results of the latest nodes only, as where a server runs for weeks; the default keeps all until memory is full.
    flags = ("--cache-lru", "12", "--cpu")
    with comfyui.running(comfyui.tree(), tmp_path, packs=(HERE / "probe",), flags=flags) as server:
        host, process = Host(server), server.process.pid
        rows, at = [], {}
        for number in range(1, 501):
            if number % 11 == 0:
                refused(host, bad(number // 11))
            elif number % 11 == 5:
                outcome(host, saving(number, frames=8))
            elif number % 11 == 6:  # what the one before has saved
                newest = max((server.base / "output" / "latents").iterdir())
                shutil.move(newest, server.base / "input" / newest.name)
                load = ("FlowcoreLoadLatents", {"file": newest.name})
                back = ("FlowcoreDecode", {"latents": "kept.0", "model": "model.0", "labels": "3"})
                digest = {"image": "made.0", "latents": "kept.0"}
                outcome(host, prompt("load", "mnist-styles", digest, kept=load, made=back))
            else:
                outcome(host, good(number))
            tried("prompts in one server")
            if number % 50 == 0:
                running = held(process).memory
                host.post("/history", {"clear": True})
                host.forget()  # so that what the latest prompts have left in the cache is not counted
                found = host.outputs(look=("FlowcoreTestObjects", {}))["look"]
                objects = found["tensors"][0], found["bytes"][0] / 2**20, found["modules"][0]
                at[number] = now = settled(process, at.get(50))
                rows.append((number, running, now.memory, now.files, now.threads, *objects))
        print("prompts, RSS MiB, after /free, files, threads, tensors, MiB of them, modules:", *rows, sep="\n")  # noqa: T201
        first, last = at[50], at[500]
        assert last.memory < 1.05 * first.memory
        assert rows[-1][1] < 1.05 * rows[0][1]
        nothing_is_left(process, first, last)
        assert rows[-1][7] <= rows[0][7], "modules are left over"
        assert server.alive()


def test_freed_memory_is_gone_and_the_next_prompt_is_right(host):
    host.forget()  # what tests before have left
    prompt = upscaling(40, samples=2)
    known = outcome(host, prompt)
    kept = graph(store=("FlowcoreTestStore", {}))
    facts = host.outputs(prompt.workflow, store=("FlowcoreTestStore", {"after": "made.0"}))["store"]
    assert facts["count"][0] > 0
    assert facts["compiled"] == [1]
    # In the middle of a prompt, which then ends as it would have.
    long = upscaling(41, samples=32)
    run = host.queue(long.workflow)
    time.sleep(0.1)
    host.post("/free", {"unload_models": True, "free_memory": True})
    freed = host.wait(run)["outputs"]["digest"]["bits"][0]
    until(lambda: host.outputs(kept)["store"]["count"] == [0])
    facts = host.outputs(kept)["store"]
    assert (facts["count"], facts["bytes"], facts["compiled"]) == ([0], [0], [0])
    assert outcome(host, prompt) == known
    assert outcome(host, long)[0] == freed


def long_ones(factor: float) -> list[Prompt]:
    """Prompts that run for a second or so, of every kind that can be cancelled; longer by a factor."""

    def n(count: int) -> int:
        return max(1, round(factor * count))

    return [
        upscaling(901, samples=n(48), tile=32),
        upscaling(902, samples=n(64)),
        coloring(903, (48, 64), "10, 10, #c04020\n40, 8, #2040c0", samples=n(8), hint_steps=30),
        coloring(904, (160, 192), samples=n(24)),
        sampling(905, "glow-photos", samples=n(48)),
        scoring(906, batch=n(32), samples=12),
        round_trip(907, batch=n(160)),
    ]


def longest(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{kind} {1000 * max(times):.0f} ms" for kind, times in sorted(seconds.items()))


@pytest.mark.fuzz
@newest
def test_prompts_cancelled_at_random_moments_leave_no_trace(host, process):
    """After each a good one must give its own picture, and the same one again."""
    times, chance, factor = (200, random.Random(), 1.0) if LONG else (4, random.Random(8), 0.15)
    prompts, small = long_ones(factor), [good(number) for number in ORDINARY]
    known, seconds = {}, {}
    for each in prompts + small:
        start = time.monotonic()
        known[each.key] = outcome(host, each)
        seconds[each.key] = time.monotonic() - start
    before = settled(process)
    latencies: dict[str, list[float]] = {}
    finished = 0
    for number in range(times):
        long = prompts[number % len(prompts)]
        run = host.queue(long.workflow)
        time.sleep(chance.uniform(0, seconds[long.key]))
        asked = time.monotonic()
        host.cancel()
        try:
            host.wait(run, timeout=60)
            finished += 1
        except RunError as error:
            if "cancelled" not in str(error):
                raise
            latencies.setdefault(long.kind, []).append(time.monotonic() - asked)
        # One of the same kind, whose model and picture the cancelled one may have left half done; and any other.
        again = [next(p for p in small if p.kind == long.kind), small[number % len(small)]]
        for other in [*again, *([long] if number % 5 == 0 else [])]:
            assert outcome(host, other) == known[other.key], f"{other.key} after {long.key} was cancelled"
        tried("cancelled prompts")
    nothing_is_left(process, before)
    print(f"{times} prompts cancelled at random moments, {finished} of them too late; at most {longest(latencies)}")  # noqa: T201


@pytest.mark.fuzz
@newest
def test_8_clients_get_their_own_pictures_and_errors(host):
    prompts = [good(number) for number in ORDINARY] + variants()[:4]
    known = {each.key: outcome(host, each) for each in prompts}
    taken: dict[str, list[float]] = {}
    wrong: list[str] = []
    start = time.monotonic()

    def post(client: int) -> None:
        own, chance = Host(host.server), random.Random(client)
        number = 0
        while (time.monotonic() < start + 600 if LONG else number < 4) and not wrong:
            number += 1
            each = bad(100 * client + number) if chance.random() < 0.15 else chance.choice(prompts)
            began = time.monotonic()
            try:
                if each.refusal:
                    refused(own, each)
                elif outcome(own, each) != known[each.key]:
                    wrong.append(f"client {client} got another picture for {each.key}")
            except Exception as error:  # of a thread: to be told to the test
                wrong.append(f"client {client}, {each.key}: {error!r}")
            taken.setdefault(each.kind, []).append(time.monotonic() - began)
            tried("prompts of clients that post at once")

    threads = [threading.Thread(target=post, args=(client,), daemon=True) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(720 if LONG else 120)
    assert not wrong, "\n".join(wrong[:5])
    assert not any(thread.is_alive() for thread in threads), "a client waits still"
    total = sum(map(len, taken.values()))
    print(f"8 clients, {time.monotonic() - start:.0f} s, {total} prompts; at most {longest(taken)}")  # noqa: T201


# --- crash and full disk ----------------------------------------------------------------------------------------------


# A process that is born again and again, saves in a circle, and is killed: 8 MB of latents, and a model.
SAVER = """
import os, random, signal, sys, time
import torch
from pathlib import Path
from flowcore.models import read, save
from flowcore.models.latents_file import load_latents, save_latents
from flowcore.models import build, configure

torch.set_num_threads(1)
folder, times, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(time.time())
flow = build("glow", configure("glow", {"levels": 2, "steps": 2, "hidden": 64, "image_size": [16, 16]})).eval()

def saving(life):
    for number in range(10**6):
        value = float(life * 1000 + number)
        levels = [torch.full((64, 6, 64, 64), value), torch.full((64, 24, 16, 16), value)]
        save_latents(folder / f"{number % 3}.safetensors", levels, model="0" * 64, architecture="glow")
        save(flow, folder / "model" / f"{number % 2}.safetensors", provenance={"value": value})

left = whole = 0
for life in range(times):
    child = os.fork()
    if not child:
        try:
            saving(life)
        finally:
            os._exit(1)
    while not any(folder.glob("*.safetensors")):  # the first lives until it has saved, however slow the machine is
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended by itself"
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        if file.suffix == ".partial":
            assert file.name.startswith("."), file
            left += 1
            os.utime(file, (1, 1))  # long ago: the next one to save here clears it away
        elif file.parent == folder:
            levels = load_latents(file)[0]
            assert len(torch.cat([z.flatten() for z in levels]).unique()) == 1, file
            whole += 1
        else:
            read(file)
            whole += 1
    assert len(list(folder.rglob("*.partial"))) <= 2, "what the dead have left is not cleared away"
print(left, whole)
"""


@pytest.mark.fuzz
def test_savers_that_are_killed_leave_no_half_file(tmp_path):
    """Every file with a final name must be whole."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system that forks")
    times = 100 if LONG else 8
    (tmp_path / "model").mkdir()
    command = [sys.executable, "-c", SAVER, str(tmp_path), str(times)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    left, whole = map(int, ran.stdout.split())
    tried("killed savers", times)
    assert whole
    print(f"{times} savers killed: {left} in the middle of a file, and {whole} files looked at, all of them whole")  # noqa: T201


def test_a_full_disk_raises_a_readable_error_and_leaves_no_file(host, process):
    resource = pytest.importorskip("resource")
    small, large = saving(1, folder="full"), saving(2, frames=512, folder="full", items=8)
    host.run(small.workflow)
    folder = host.server.base / "output" / "full"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    # What a full disk does: a write fails midway. The server's console stays below.
    most = host.server.log.stat().st_size + 1_000_000
    resource.prlimit(process, resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(RunError) as refused:
            host.run(large.workflow)
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))
    text = str(refused.value)
    for words in ("Could not save soak_", "File too large", "MB are free", "was not changed", "save elsewhere"):
        assert words in text
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    host.run(large.workflow)
    assert len(list(folder.iterdir())) == 2
    for file in folder.iterdir():
        load_latents(file)


def test_partial_files_of_a_killed_server_are_hidden_and_removed(host, process):
    folder = host.server.base / "output" / "left"
    host.run(saving(3, folder="left").workflow)
    (file,) = folder.iterdir()
    old, living = (folder / f".{file.name}.{number}.partial" for number in (2**22 + 1, process))
    for partial in (old, living):
        partial.write_bytes(file.read_bytes()[:100])
    os.utime(old, (1, 1))
    places = [host.server.base / place for place in ("input", "input/latents", "models/flows")]
    beside = [place / f".x.safetensors.{process}.partial" for place in places]  # where loaders look
    for partial in beside:
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(b"half")
    try:
        info = host.get_json("/object_info")
        assert "partial" not in str(info["FlowcoreLoadLatents"]["input"])
        assert "partial" not in str(info["FlowcoreLoadModel"]["input"]["required"]["model_name"])
        host.run(saving(4, folder="left").workflow)
        assert not old.exists()
        assert living.exists()  # touched just now: someone may be writing it
    finally:
        for partial in beside:
            partial.unlink()


def test_hosts_make_the_same(host, tmp_path_factory):
    prompts = [*(good(number) for number in ORDINARY), *variants()]
    came = {prompt.key: repr(outcome(host, prompt)) for prompt in prompts}
    photo = host.put("same.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((120, 40, 152, 64)))
    (made,) = host.images(upscale(photo=photo, seed=11))
    came["photograph"] = hashlib.sha256(made.tobytes()).hexdigest()
    gray = graph(
        photo=("LoadImage", {"image": photo}),
        model=loader("color-photos"),
        made=("FlowcoreColorize", {"image": "photo.0", "model": "model.0", "temperature": 1.0, "seed": 4}),
        save=("SaveImage", {"images": "made.0", "filename_prefix": "same"}),
    )
    (made,) = host.images(gray)
    came["colors"] = hashlib.sha256(made.tobytes()).hexdigest()
    # The other host may be in another process, so each leaves what came in a file; the later one finds both. Processes
    # of pytest-xdist have folders of their own within that of the run.
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    partial = shared / f"{host.version}.partial"
    partial.write_text(json.dumps(came))
    partial.replace(shared / f"same on {host.version}.json")
    for file in shared.glob("same on *.json"):
        assert json.loads(file.read_text()) == came, file.stem
