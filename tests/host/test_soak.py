"""Endurance, in `make soak` only: hundreds of prompts, cancelled ones, eight clients at once, servers that are killed.

The short forms are in test_reliability.py. Each test has a server of its own, of the newer host.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import pytest
import soak
from cases import tried
from talk import Host

from flowcore.checkpoints.latents_file import load_latents

pytestmark = pytest.mark.soak


# --- memory, files, threads -------------------------------------------------------------------------------------------


def test_500_prompts_leave_memory_files_and_threads_where_they_were(tmp_path, capsys):
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
        with capsys.disabled():
            print("prompts, RSS MiB, after /free, files, threads, tensors, MiB of them, modules:", *rows, sep="\n")  # noqa: T201
        first, last = at[50], at[500]
        assert last.memory < 1.05 * first.memory
        assert rows[-1][1] < 1.05 * rows[0][1]
        assert last.threads <= first.threads
        assert last.files <= first.files, soak.open_files(process)
        assert rows[-1][7] <= rows[0][7], "modules are left over"
        assert server.alive()


def printed(capsys, report):
    with capsys.disabled():
        print(f"\n{report}")  # noqa: T201


def test_200_prompts_cancelled_at_random_moments_leave_no_trace(tmp_path, capsys):
    with soak.server(tmp_path) as server:
        printed(capsys, soak.cancelled(Host(server), server, 200, random.Random(time.time())))


def test_8_clients_get_their_own_pictures_and_errors_for_10_minutes(tmp_path, capsys):
    with soak.server(tmp_path) as server:
        prompts = [soak.good(number) for number in range(24)] + soak.variants()
        known = {prompt.key: soak.outcome(Host(server), prompt) for prompt in prompts}
        printed(capsys, soak.clients(server, prompts, known, count=8, seconds=600))


# --- crash ------------------------------------------------------------------------------------------------------------


def test_100_savers_killed_at_random_moments_leave_no_half_file(tmp_path, capsys):
    printed(capsys, soak.killed_savers(tmp_path, 100))


def test_20_servers_killed_during_a_save_leave_no_half_file(tmp_path, capsys):
    chance, left, whole = random.Random(time.time()), Counter(), 0
    for life in range(20):
        with soak.server(tmp_path) as server:
            host = Host(server)
            if life:  # nothing that is listed is half; what the last life left is not listed
                info = host.get_json("/object_info")
                listed = info["FlowcoreLoadLatents"]["input"]["required"]["file"]
                assert "partial" not in str(listed)
                assert "partial" not in str(info["FlowcoreLoadModel"]["input"]["required"]["model_name"])
            for number in range(12):  # 25 MB each
                host.queue(soak.saving(100 * life + number, frames=512, folder="latents").workflow)
            time.sleep(chance.uniform(0.5, 2.5))
            server.process.kill()
            server.process.wait()
        tried("servers killed during a save")
        for file in (tmp_path / "output").rglob("*"):
            if file.is_file() and file.suffix == ".safetensors":
                load_latents(file)
                whole += 1
                file.unlink()
            elif file.is_file():
                assert file.name.startswith(".")
                assert file.suffix == ".partial"
                left["partial files"] += 1
                file.rename(tmp_path / "input" / file.name)  # where loaders look
    printed(capsys, f"20 servers killed: {whole} whole files, {dict(left)}")
    assert whole
