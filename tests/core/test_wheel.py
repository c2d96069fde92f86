"""The wheel, in an empty environment and away from this checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WALK = (ROOT / "docs" / "walk-through.md").read_text()
OPENS = "\n".join(re.findall(r">>> (import numpy.*|from PIL.*|PHOTO.*|pixels.*)", WALK)) + "\nprint(pixels.shape)"
UPSCALES = """
import flowcore
from flowcore.images.files import read
photo = read(open("photo.png", "rb").read(), "photo.png").pixels
print(flowcore.__file__, *flowcore.upscale(flowcore.load("srflow-x8"), photo, seed=1).shape)
"""


def run(*command, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel and nothing else; its folder of programs."""
    folder, pip = tmp_path_factory.mktemp("wheel"), (sys.executable, "-m", "pip", "--disable-pip-version-check")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(ROOT / "flowcore", folder / "source" / "flowcore", ignore=shutil.ignore_patterns("__pycache__"))
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source", check=True)
    shutil.rmtree(folder / "source")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "fresh", check=True)
    programs = folder / "fresh" / ("Scripts" if os.name == "nt" else "bin")
    run(*pip, "--python", programs / "python", "install", "-q", "--no-deps", *folder.glob("*.whl"), check=True)
    return programs


@pytest.mark.slow
def test_the_wheel_names_its_extra_without_torch_and_upscales_with_it(environment, tmp_path):
    Image.open(ROOT / "workflows" / "photo.png").convert("RGB").crop((120, 40, 144, 56)).save(tmp_path / "photo.png")
    for command in ((environment / "flowcore", "--version"), (environment / "python", "-c", "import flowcore")):
        refused = run(*command, cwd=tmp_path)
        assert refused.returncode == 1
        assert "in a clone: pip install -e '.[python]'" in refused.stderr.splitlines()[-1]
        assert ("Traceback" in refused.stderr) == (command[0].stem == "python")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment.parent)}))
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))  # torch and the others, but no flowcore
    python = run(environment / "python", "-c", UPSCALES, cwd=tmp_path)
    assert python.stdout.split() == [str(packages / "flowcore" / "__init__.py"), "1", "3", "128", "192"], python.stderr
    assert run(environment / "python", "-c", OPENS, cwd=tmp_path).stdout.split() == ["(64,", "64,", "3)"]
    script = run(environment / "flowcore", "upscale", "photo.png", "-o", "out", "--model", "srflow-x8", cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    (made,) = (tmp_path / "out").glob("*.png")
    assert Image.open(made).size == (192, 128)
