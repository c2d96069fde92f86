"""What tests of endurance share: many prompts of shipped models, good and bad, and what a server's process holds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import comfyui
import pytest
from cases import tried
from client import RunError
from talk import HERE, Host, graph, picture

# A server that runs for weeks: results of the latest nodes only. The default keeps all until memory is nearly full.
LASTING = ("--cache-lru", "12")


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


def upscaling(number: int = 0, **inputs: Any) -> Prompt:
    """A small image of varying size, four times as large."""
    height, width = 8 + 5 * (number % 3), 10 + 4 * (number % 4)
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.8, "seed": number} | inputs
    image = picture(fill=f"photo{number}", height=height, width=width)
    return _prompt("upscale", "srflow-x4", image=image, made=("FlowcoreUpscale", asked))


def coloring(number: int = 0, sides: tuple[int, int] = (40, 48), points: str = "", **inputs: Any) -> Prompt:
    """A small gray image in colors; with points, spread as hints."""
    asked = {"temperature": 1.0, "seed": number, "working_size": 64, "image": "image.0", "model": "model.0"} | inputs
    nodes = {"image": picture(fill=f"photo{number}", channels=1, height=sides[0], width=sides[1])}
    if points:
        nodes["hints"] = ("FlowcoreColorHints", {"image": "image.0", "points": points, "radius": 6})
        asked["hints"] = "hints.0"
    return _prompt("colorize", "color-photos", **nodes, made=("FlowcoreColorize", asked))


def sampling(number: int = 0, model: str = "realnvp-photos", **inputs: Any) -> Prompt:
    """Images out of noise, and their latents."""
    asked = {"model": "model.0", "samples": 1, "temperature": 0.7, "seed": number} | inputs
    return _prompt("sample", model, digest={"latents": "made.1"}, made=("FlowcoreSample", asked))


def scoring(number: int = 0, batch: int = 1, **inputs: Any) -> Prompt:
    """Bits per dimension of pieces of a photograph."""
    return _prompt(
        "score",
        "realnvp-photos",
        digest={"number": "made.0", "image": "made.1"},
        image=picture(fill=f"photo{number}", height=32, width=32, batch=batch),
        made=("FlowcoreScore", {"image": "image.0", "model": "model.0", "seed": number} | inputs),
    )


def round_trip(number: int = 0, batch: int = 1) -> Prompt:
    """There and back: latents and the image again."""
    return _prompt(
        "encode",
        "realnvp-photos",
        digest={"latents": "encoded.0"},
        image=picture(fill=f"photo{number}", height=32, width=32, batch=batch),
        encoded=("FlowcoreEncode", {"image": "image.0", "model": "model.0"}),
        made=("FlowcoreDecode", {"latents": "encoded.0", "model": "model.0"}),
    )


def saving(number: int = 0, frames: int = 2, folder: str = "latents", items: int = 1) -> Prompt:
    """Latents into a file; with many frames and items, a large one: 3 kB each."""
    drawn = {"model": "model.0", "samples": items, "temperature": 0.7, "seed": number, "labels": "1"}
    return _prompt(
        "save",
        "mnist-styles",
        digest={"image": None, "latents": "made.0"},
        one=("FlowcoreSample", drawn),
        two=("FlowcoreVaryLatents", {"latents": "one.1", "seed": 1000 + number, "strength": 0.5}),
        made=("FlowcoreInterpolate", {"a": "one.1", "b": "two.0", "frames": frames, "mode": "slerp"}),
        kept=("FlowcoreSaveLatents", {"latents": "made.0", "filename_prefix": f"{folder}/soak"}),
    )


def loading(file: str) -> Prompt:
    """Latents out of a file, decoded."""
    return _prompt(
        "load",
        "mnist-styles",
        digest={"latents": "kept.0"},
        kept=("FlowcoreLoadLatents", {"file": file}),
        made=("FlowcoreDecode", {"latents": "kept.0", "model": "model.0", "labels": "3"}),
    )


def _prompt(kind: str, model: str, digest: dict[str, str | None] | None = None, **nodes: Any) -> Prompt:
    """A prompt whose node "made" is digested, and what else is said."""
    wires = {name: wire for name, wire in ({"image": "made.0"} | (digest or {})).items() if wire}
    loader = ("FlowcoreLoadModel", {"model_name": model})
    return Prompt(kind, graph(model=loader, **nodes, digest=("FlowcoreTestDigest", wires)))


def bad(number: int) -> Prompt:
    """What must be refused, each with its own words: while it runs, or before."""
    side = 3 + number % 11
    upscaled, sampled, scored = upscaling(number), sampling(number), scoring(number)
    made = [
        (_with(upscaled, image=picture(fill="nan", height=side, width=side)), (f"holds {3 * side * side} values",)),
        (_with(upscaled, image=picture(batch=0, height=side)), ("empty", f"{side}, 16")),
        (_with(upscaled, image=picture(channels=2, height=side)), (f"(1, 2, {side}, 16)",)),
        (_with(sampled, model=("FlowcoreLoadModel", {"model_name": "color-photos"})), ("Flow Colorize",)),
        (_with(sampled, model=("FlowcoreLoadModel", {"model_name": "srflow-x4"})), ("sample needs",)),
        (_with(sampled, model=("FlowcoreLoadModel", {"model_name": f"nope{number}"})), (f"nope{number}",)),
        (_with(scored, image=picture(channels=5, height=32, width=32)), ("channels", "5")),
        (coloring(number, working_size=99_999), ("working_size", "99999")),
        (upscaling(number, samples=1000 + number), ("samples", str(1000 + number))),
    ]
    prompt, words = made[number % len(made)]
    return Prompt("bad", prompt.workflow, words)


def _with(prompt: Prompt, **nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return dataclasses.replace(prompt, workflow=prompt.workflow | graph(**nodes))


def good(number: int) -> Prompt:
    """One of many small prompts of every kind; the same number is the same prompt."""
    digits = functools.partial(sampling, model="mnist-styles", samples=3, labels="7, 1")
    kinds = (upscaling, coloring, sampling, scoring, round_trip, digits)
    return kinds[number % len(kinds)](number // len(kinds))


# --- what comes of them -----------------------------------------------------------------------------------------------


def outcome(host: Host, prompt: Prompt) -> tuple[str, str]:
    """Run a good prompt; fingerprints of every bit, and of the picture as a file has it."""
    outputs = host.outputs(prompt.workflow)
    return outputs["digest"]["bits"][0], outputs["digest"]["stored"][0]


def refused(host: Host, prompt: Prompt) -> None:
    """Run a bad prompt, and see it refused with its own words."""
    with pytest.raises(RunError) as error:
        host.run(prompt.workflow)
    missing = [word for word in prompt.refusal if word.lower() not in str(error.value).lower()]
    assert not missing, f"{prompt.kind}: {missing} not in: {error.value}"


# --- servers and their processes --------------------------------------------------------------------------------------


def server(base: Path, *flags: str) -> Any:
    """A server of the newer host, for one test alone; on the CPU, whatever there is, with a thread like its clients."""
    return comfyui.running(comfyui.tree(), base, packs=(HERE / "probe",), flags=(*LASTING, "--cpu", *flags))


class Held(NamedTuple):
    """What a process holds."""

    memory: float  # MiB
    files: int  # and sockets
    threads: int


def held(process: int) -> Held:
    """Look at a process."""
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


def open_files(process: int) -> list[str]:
    """Name what a process has open, for a message."""
    names = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(link))
    return sorted(names)


def longest(seconds: dict[str, list[float]]) -> str:
    """Format the longest time of every kind of prompt."""
    return ", ".join(f"{kind} {1000 * max(times):.0f} ms" for kind, times in sorted(seconds.items()))


def objects(host: Host) -> tuple[int, float, int]:
    """What the server's process holds of torch: tensors, MiB of them, modules."""
    found = host.outputs({"look": {"class_type": "FlowcoreTestObjects", "inputs": {}}})["look"]
    return found["tensors"][0], found["bytes"][0] / 2**20, found["modules"][0]


# --- cancel -----------------------------------------------------------------------------------------------------------


def long_ones(factor: float = 1.0) -> list[Prompt]:
    """Prompts that run for a second or so, of every kind that can be cancelled; longer by a factor."""

    def n(count: int) -> int:
        return max(1, round(factor * count))

    points = "10, 10, #c04020\n40, 8, #2040c0"
    return [
        upscaling(901, samples=n(48), tile=32),
        upscaling(902, samples=n(64)),
        coloring(903, (48, 64), points, samples=n(8), hint_steps=30),
        coloring(904, (160, 192), samples=n(24)),
        sampling(905, "glow-photos", samples=n(48)),
        scoring(906, batch=n(32), samples=12),
        round_trip(907, batch=n(160)),
    ]


def cancelled(host: Host, server: comfyui.Server, times: int, chance: random.Random, factor: float = 1.0) -> str:
    """Cancel prompts at random moments; after each a good one must give its own picture, and the same one again."""
    prompts, small = long_ones(factor), [good(number) for number in range(6)]
    known, seconds = {}, {}
    for prompt in prompts + small:
        start = time.monotonic()
        known[prompt.key] = outcome(host, prompt)
        seconds[prompt.key] = time.monotonic() - start
    before = settled(server.process.pid)
    latencies: dict[str, list[float]] = {}
    finished = 0
    for number in range(times):
        prompt = prompts[number % len(prompts)]
        run = host.queue(prompt.workflow)
        time.sleep(chance.uniform(0, seconds[prompt.key]))
        asked = time.monotonic()
        host.cancel()
        try:
            host.wait(run, timeout=60)
            finished += 1
        except RunError as error:
            if "cancelled" not in str(error):
                raise
            latencies.setdefault(prompt.kind, []).append(time.monotonic() - asked)
        # One of the same kind, whose model and picture the cancelled one may have left half done; and any other.
        again = [next(p for p in small if p.kind == prompt.kind), small[number % len(small)]]
        for other in [*again, *([prompt] if number % 5 == 0 else [])]:
            assert outcome(host, other) == known[other.key], f"{other.key} after {prompt.key} was cancelled"
        tried("cancelled prompts")
    after = settled(server.process.pid, before)
    assert after.threads <= before.threads
    assert after.files <= before.files, open_files(server.process.pid)
    return f"{times} prompts cancelled at random moments, {finished} of them too late; at most {longest(latencies)}"


# --- several clients --------------------------------------------------------------------------------------------------


def variants() -> list[Prompt]:
    """The same picture and model in other ways: what is kept of one must not serve another."""
    colors: list[dict[str, Any]] = [{}, {"temperature": 0.3}, {"precision": "bfloat16"}, {"samples": 2}]
    ways = [*colors[:3], {"seed": 7}, *colors[3:], {"tile": 32}]
    return [*(upscaling(33, **way) for way in ways), *(coloring(33, **way) for way in colors)]


def clients(
    server: comfyui.Server, prompts: list[Prompt], known: dict[str, Any], count: int, seconds: float = 0, each: int = 0
) -> str:
    """Let clients post for some seconds, or so many prompts each; every good prompt must give its own picture."""
    taken: dict[str, list[float]] = {}
    wrong: list[str] = []
    start = time.monotonic()

    def post(client: int) -> None:
        host, chance = Host(server), random.Random(client)
        number = 0
        while (number < each if each else time.monotonic() < start + seconds) and not wrong:
            number += 1
            prompt = bad(100 * client + number) if chance.random() < 0.15 else chance.choice(prompts)
            began = time.monotonic()
            try:
                if prompt.refusal:
                    refused(host, prompt)
                elif outcome(host, prompt) != known[prompt.key]:
                    wrong.append(f"client {client} got another picture for {prompt.key}")
            except Exception as error:  # of a thread: to be told to the test
                wrong.append(f"client {client}, {prompt.key}: {error!r}")
            taken.setdefault(prompt.kind, []).append(time.monotonic() - began)
            tried("prompts of clients that post at once")

    threads = [threading.Thread(target=post, args=(client,), daemon=True) for client in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert not wrong, "\n".join(wrong[:5])
    assert not any(thread.is_alive() for thread in threads), "a client waits still"
    passed = time.monotonic() - start
    total = sum(map(len, taken.values()))
    return f"{count} clients, {passed:.0f} s, {total} prompts; at most {longest(taken)}"


# --- crash ------------------------------------------------------------------------------------------------------------

# A process that is born again and again, saves in a circle, and is killed: 8 MB of latents, and a model.
SAVER = """
import os, random, signal, sys, time
import torch
from pathlib import Path
from flowcore.checkpoints import read, save
from flowcore.checkpoints.latents_file import load_latents, save_latents
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


def killed_savers(folder: Path, times: int) -> str:
    """Kill processes that save into a folder; every file with a final name must be whole."""
    (folder / "model").mkdir()
    command = [sys.executable, "-c", SAVER, str(folder), str(times)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    left, whole = map(int, ran.stdout.split())
    tried("killed savers", times)
    assert whole
    return f"{times} savers killed: {left} in the middle of a file, and {whole} files looked at, all of them whole"
