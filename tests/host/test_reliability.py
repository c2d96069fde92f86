"""Nothing breaks, nothing leaks, nothing is lost: in short, and in `make soak` for hours."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import time

import pytest
import soak
from cases import LONG, tried
from client import RunError
from PIL import Image
from talk import WORKFLOWS, Host, graph, loader, newer, until, upscale

from flowcore.checkpoints.latents_file import load_latents

ORDINARY = range(6)  # one prompt of every kind


@pytest.fixture
def process(host):
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into a process the Linux way")
    return host.server.process.pid


@pytest.fixture
def newest(host):
    if not newer(host.version, "0.30.0"):
        pytest.skip("to save time: the newer host is enough")


def test_prompts_leave_no_file_open_and_no_thread(host, process, newest):
    for number in ORDINARY:
        soak.outcome(host, soak.good(number))
    before = soak.settled(process)
    for number in range(6, 18):
        soak.outcome(host, soak.good(number))
    for number in range(5):
        soak.refused(host, soak.bad(number))
    after = soak.settled(process, before)
    assert after.threads <= before.threads
    assert after.files <= before.files, soak.open_files(process)


@pytest.mark.soak
def test_500_prompts_leave_memory_files_and_threads_where_they_were(tmp_path):
    with soak.server(tmp_path) as server:
        host, process = Host(server), server.process.pid
        rows, at = [], {}
        for number in range(1, 501):
            if number % 11 == 0:
                soak.refused(host, soak.bad(number // 11))
            elif number % 11 == 5:
                soak.outcome(host, soak.saving(number, frames=8))
            elif number % 11 == 6:  # what the one before has saved
                newest = max((server.base / "output" / "latents").iterdir())
                shutil.move(newest, server.base / "input" / newest.name)
                soak.outcome(host, soak.loading(newest.name))
            else:
                soak.outcome(host, soak.good(number))
            tried("prompts in one server")
            if number % 50 == 0:
                running = soak.held(process).memory
                host.post("/history", {"clear": True})
                host.forget()  # so that what the latest prompts have left in the cache is not counted
                objects = soak.objects(host)
                at[number] = now = soak.settled(process, at.get(50))
                rows.append((number, running, now.memory, now.files, now.threads, *objects))
        print("prompts, RSS MiB, after /free, files, threads, tensors, MiB of them, modules:", *rows, sep="\n")  # noqa: T201
        first, last = at[50], at[500]
        assert last.memory < 1.05 * first.memory
        assert rows[-1][1] < 1.05 * rows[0][1]
        assert last.threads <= first.threads
        assert last.files <= first.files, soak.open_files(process)
        assert rows[-1][7] <= rows[0][7], "modules are left over"
        assert server.alive()


def test_freed_memory_is_gone_and_the_next_prompt_is_right(host):
    host.forget()  # what tests before have left
    prompt = soak.upscaling(40, samples=2)
    known = soak.outcome(host, prompt)
    kept = graph(store=("FlowcoreTestStore", {}))
    facts = host.outputs(prompt.workflow, store=("FlowcoreTestStore", {"after": "made.0"}))["store"]
    assert facts["count"][0] > 0
    assert facts["plans"] == [1]
    # In the middle of a prompt, which then ends as it would have.
    long = soak.upscaling(41, samples=32)
    run = host.queue(long.workflow)
    time.sleep(0.1)
    host.post("/free", {"unload_models": True, "free_memory": True})
    freed = host.wait(run)["outputs"]["digest"]["bits"][0]
    until(lambda: host.outputs(kept)["store"]["count"] == [0])
    facts = host.outputs(kept)["store"]
    assert (facts["count"], facts["bytes"], facts["plans"]) == ([0], [0], [0])
    assert soak.outcome(host, prompt) == known
    assert soak.outcome(host, long)[0] == freed


@pytest.mark.fuzz
def test_prompts_cancelled_at_random_moments_leave_no_trace(host, process, newest):
    times, chance, factor = (200, random.Random(), 1.0) if LONG else (4, random.Random(8), 0.15)
    print(soak.cancelled(host, host.server, times, chance, factor))  # noqa: T201


@pytest.mark.fuzz
def test_8_clients_get_their_own_pictures_and_errors(host, newest):
    prompts = [soak.good(number) for number in ORDINARY] + soak.variants()[:4]
    known = {prompt.key: soak.outcome(host, prompt) for prompt in prompts}
    print(soak.clients(host.server, prompts, known, count=8, each=0 if LONG else 4, seconds=600 if LONG else 0))  # noqa: T201


def test_cached_conditions_of_other_settings_are_not_mixed_up(host, newest):
    prompts = soak.variants()
    alone = []
    for prompt in prompts:
        host.forget()
        alone.append(soak.outcome(host, prompt))
    assert alone[0] == alone[5]  # smaller than a tile
    assert len(set(alone)) == len(alone) - 1
    assert [soak.outcome(host, prompt) for prompt in prompts[::-1]] == alone[::-1]


# --- crash and full disk ----------------------------------------------------------------------------------------------


@pytest.mark.fuzz
def test_savers_that_are_killed_leave_no_half_file(tmp_path):
    if not hasattr(soak.os, "fork"):
        pytest.skip("needs a system that forks")
    print(soak.killed_savers(tmp_path, 100 if LONG else 8))  # noqa: T201


def test_a_full_disk_raises_a_readable_error_and_leaves_no_file(host, process):
    resource = pytest.importorskip("resource")
    small, large = soak.saving(1, folder="full"), soak.saving(2, frames=512, folder="full", items=8)
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
    host.run(soak.saving(3, folder="left").workflow)
    (file,) = folder.iterdir()
    old, living = (folder / f".{file.name}.{number}.partial" for number in (2**22 + 1, process))
    for partial in (old, living):
        partial.write_bytes(file.read_bytes()[:100])
    soak.os.utime(old, (1, 1))
    places = [host.server.base / place for place in ("input", "input/latents", "models/flows")]
    beside = [place / f".x.safetensors.{process}.partial" for place in places]  # where loaders look
    for partial in beside:
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(b"half")
    try:
        info = host.get_json("/object_info")
        assert "partial" not in str(info["FlowcoreLoadLatents"]["input"])
        assert "partial" not in str(info["FlowcoreLoadModel"]["input"]["required"]["model_name"])
        host.run(soak.saving(4, folder="left").workflow)
        assert not old.exists()
        assert living.exists()  # touched just now: someone may be writing it
    finally:
        for partial in beside:
            partial.unlink()


def test_hosts_make_the_same(host, shared):
    prompts = [*(soak.good(number) for number in ORDINARY), *soak.variants()]
    came = {prompt.key: repr(soak.outcome(host, prompt)) for prompt in prompts}
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
    # The other host may be in another process, so each leaves what came in a file; the later one finds both.
    partial = shared / f"{host.version}.partial"
    partial.write_text(json.dumps(came))
    partial.replace(shared / f"same on {host.version}.json")
    for file in shared.glob("same on *.json"):
        assert json.loads(file.read_text()) == came, file.stem
