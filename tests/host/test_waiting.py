"""No request makes the server wait, and none learns what its disk holds outside of the folders for pictures."""

import os
import re
import threading
import time
from pathlib import Path

import comfyui
import pytest
from client import RunError
from PIL import Image
from talk import Host, graph, loader, newest, picture, refusal, report

OUTSIDE = ["/sys", "/proc", "/proc/1/fd", "/dev/zero", "/", "/no/such/folder", "../..", "~"]
FILES = 100_000
LATEST = 0.2  # seconds until an answer


def train(folder, name="waiting"):
    made = {"folder": folder, "recipe": "glow-photos", "name": name, "minutes": 0.1}
    return graph(train=("FlowcoreTrain", made))


def whole_folder(folder):
    made = {"folder": folder, "subfolder": "waiting", "model": "model.0", "temperature": 0.0, "seed": 0}
    return graph(model=loader("srflow-x4"), folder=("FlowcoreFolder", made))


def example(folder):
    return graph(example=("FlowcoreExample", {"picture": folder}), show=("PreviewImage", {"images": "example.0"}))


def said(host, workflow):
    """What a script learns of a workflow that is refused, before it runs or while it does."""
    with pytest.raises(RunError) as error:
        host.run(workflow)
    return str(error.value)


def queued(host, workflow):
    """The id of a run, or None if the server refused it."""
    try:
        return host.queue(workflow)
    except RunError:
        return None


@pytest.fixture
def many(host):
    folder = host.server.base / "input" / "many"
    if not folder.exists():
        folder.mkdir()
        for number in range(FILES):
            (folder / f"{number}.txt").touch()
    return folder.name


class Polling:
    """Asks a server for its queue while a block runs, and notes how long the slowest answer took.

    In seconds of the server's processor time, all threads together: on a busy machine any answer is late.
    """

    def __init__(self, host):
        self._host, self._ended, self.slowest = host, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._poll)

    def _poll(self):
        while not self._ended.is_set():
            started = self._worked()
            self._host.get("/queue")
            self.slowest = max(self.slowest, self._worked() - started)

    def _worked(self):
        fields = Path(f"/proc/{self._host.server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


@newest
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the processor time of a process is in /proc")
@pytest.mark.parametrize("make", [train, whole_folder, example])
def test_no_prompt_makes_the_server_wait(host, many, make):
    slowest = []
    for _ in range(3):  # what else the server does may take long once, and a request that walks a folder always does
        with Polling(host) as polling:
            runs = [queued(host, make(folder)) for folder in ("/sys", "/proc", many)]
        slowest.append(polling.slowest)
        assert runs[:2] == [None, None]
        with pytest.raises(RunError):  # it holds no picture
            host.wait(runs[2])
    assert min(slowest) < LATEST


@newest
def test_the_search_for_images_can_be_cancelled(host, many):
    def ended_by_cancel(name):
        run = host.queue(train(many, name))
        while run not in str(host.get_json("/queue")["queue_running"]):
            time.sleep(0.01)
        host.cancel()
        with pytest.raises(RunError) as error:
            host.wait(run)
        return "cancelled" in str(error.value)

    # A quick machine may have searched all files before the request arrives; it finds no image.
    assert any(ended_by_cancel(f"searching {attempt}") for attempt in range(8))


@newest
@pytest.mark.parametrize("make", [train, whole_folder])
def test_nothing_is_said_of_the_disk_outside(host, make):
    answers = {said(host, make(folder)).replace(repr(folder), "NAME") for folder in OUTSIDE}
    assert len(answers) == 1
    assert "is outside of the folders in which this server opens pictures" in answers.pop()


@newest
def test_links_lead_nowhere_else(host):
    folder = host.server.base / "input" / "linked"
    folder.mkdir(exist_ok=True)
    outside = host.server.base.parent / "secret"
    outside.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(outside / "a.png")
    for link, target in (("folder", outside), ("a.png", outside / "a.png")):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(target)
    assert "'linked/folder' is outside" in said(host, train("linked/folder"))
    refusal(host, train("linked"), "leads out of the folders")


@newest
def test_a_folder_that_the_administrator_names_is_open(host):
    folder = host.server.base / "extra" / "pictures"
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    (info,) = host.outputs(whole_folder(str(folder)))["folder"]["text"][-1:]
    assert info.startswith("1 pictures: 1 made")
    refusal(host, train(str(folder)), "64 pixels")  # it was looked at
    assert "flowcore_pictures" not in host.get_json("/models")  # which would list what is in it


def test_a_variable_removes_flow_train(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCORE_NO_TRAINING", "1")
    with comfyui.running(comfyui.tree(), tmp_path) as server:
        known = Host(server).get_json("/object_info")
    assert "FlowcoreTrain" not in known
    assert "FlowcoreFolder" in known


def test_a_node_that_takes_long_shows_the_time_that_is_left(host):
    events = []
    image = picture(fill="photo", height=96, width=96)
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.0, "seed": 1, "samples": 16, "tile": 32}
    story = graph(image=image, model=loader("srflow-x4"), node=("FlowcoreUpscale", asked), show=report("node.0"))
    host.run(story, events.append)
    words = [e["data"]["text"] for e in events if isinstance(e, dict) and e["type"] == "flowcore.text"]
    assert re.fullmatch(r"About (\d+ min )?[\d.]+ s left", words[0])
