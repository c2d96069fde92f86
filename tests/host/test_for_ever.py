"""Saved workflows keep working: schemas are only appended to, and every released version loads and runs."""

import json
import os
import re
import subprocess
import sys

import comfyui
import pytest
from record_golden import GOLDEN, NOTES, changes, kept, shipped, versions
from saved_workflows import EARLIER, RESULTS, canonical, check_values, known, run_small, to_api, valued
from stories import on_canvas
from talk import newest


def test_schemas_are_those_recorded_and_what_was_appended_is_recorded_too(host):
    golden, now = json.loads(GOLDEN.read_text()), kept(host.get_json("/object_info"), comfyui.PACK_NAME)
    assert changes(golden, now) == []
    for part in ("inputs", "outputs"):
        names = [{node: [x["name"] for x in info[part]] for node, info in side.items()} for side in (golden, now)]
        assert names[0] == names[1], "run `python tests/host/record_golden.py`"


def test_every_shipped_workflow_is_kept():
    for place in (".", "api"):
        kept_now = {story: versions(place, story)[-1:] for story in shipped(place)}
        changed = [story for story, now in shipped(place).items() if [old for _, old in kept_now[story]] != [now]]
        assert changed == [], "run `python tests/host/record_golden.py`"


@newest
def test_every_released_version_opens_as_it_was_and_runs(host, photo, folder_of_photos):
    """One runs of those whose nodes have the same inputs; `test_a_template_runs` runs the current ones.

    Stories that are no longer shipped are kept, too, since people have saved them.
    """
    every = host.get_json("/object_info")
    for story in RESULTS | EARLIER:
        seen = [] if story in RESULTS else [None]  # none of the latter is current
        for (path, canvas), (_, api) in reversed([*zip(versions(".", story), versions("api", story), strict=True)]):
            on_canvas_now, as_sent = canonical(to_api(canvas, every)), canonical(known(on_canvas(api), every))
            assert {kind: on_canvas_now[kind] | values for kind, values in as_sent.items()} == on_canvas_now, path
            for node in [node for node in canvas["nodes"] if node["type"] not in NOTES]:
                check_values(node["type"], [widget for widget in valued(node, every[node["type"]]) if widget[0]])
            inputs = {kind: values.keys() for kind, values in as_sent.items()}
            if seen and inputs not in seen:
                pictures = run_small(host, on_canvas(api), photo, folder_of_photos)
                assert (len(pictures), pictures[0].size) == (RESULTS | EARLIER)[story], path
            seen.append(inputs)


FLOOR = re.findall(r'requires-comfyui = ">=(.+)"', (comfyui.ROOT / "pyproject.toml").read_text())[0]
OPENS = """
import asyncio, importlib.util, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
spec = importlib.util.spec_from_file_location("pack", sys.argv[1], submodule_search_locations=[])
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
if len(sys.argv) > 2:
    asyncio.run(pack.comfy_entrypoint())
"""


def opens(*arguments, path):
    """What a process says that opens the door of the pack, as a host does that has only what is on the path."""
    command = [sys.executable, "-c", f"{'import folder_paths' if path else ''}\n{OPENS}", comfyui.ROOT / "__init__.py"]
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    options = {"env": environment, "capture_output": True, "text": True, "check": False, "timeout": 60}
    return subprocess.run([*command, *arguments], **options)


@pytest.mark.parametrize("version", [None, "0.3.75", "0.19.9"])
def test_an_old_host_logs_one_readable_error(tmp_path, version):
    """Hosts before 0.3.48 never call the entry point, and have no number."""
    (tmp_path / "folder_paths.py").touch()
    if version:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    done = opens(path=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("ERROR flowcore") for line in done.stderr.splitlines())
    assert f"flowcore needs ComfyUI >= {FLOOR}; this one is older" in done.stderr
    called = opens("call", path=tmp_path)
    assert called.returncode == 1
    assert f"ImportError: flowcore needs ComfyUI >= {FLOOR}" in called.stderr
    assert "ModuleNotFoundError" not in called.stderr


def test_without_a_host_the_import_is_silent():
    done = opens(path=None)
    assert (done.returncode, done.stderr) == (0, "")
