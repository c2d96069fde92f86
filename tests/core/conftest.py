"""The core tests run on one thread: they are tiny, and sums in one order are the same numbers everywhere."""

import subprocess
from pathlib import Path

import pytest
import torch
from builders import build_tiny, build_upscaler

from flowcore import save
from flowcore.cli.credentials import make_certificate

from .commands import run, write_colorizer
from .photographs import photographs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tracked():
    """Every file of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so the files of the archive are unknown")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.splitlines()


@pytest.fixture(scope="session")
def shipped(tracked):
    """Every file of the registry's archive: tracked by git and not excluded by .comfyignore."""
    command = ["git", "ls-files", "--ignored", "--cached", "--exclude-from=.comfyignore"]
    excluded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(set(tracked) - set(excluded))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A function that sets a certificate and its key for content credentials, and returns their files; one is set."""
    folder = tmp_path / "my secrets"

    def put(chain=None, key=None, mode=0o600, **fields):
        made = make_certificate(**fields)
        folder.mkdir(exist_ok=True)
        files = folder / "chain.pem", folder / "key.pem"
        for name, file, content in zip(("CERTIFICATES", "KEY"), files, (chain or made[0], key or made[1]), strict=True):
            file.write_bytes(content)
            file.chmod(mode)
            monkeypatch.setenv(f"FLOWCORE_{name}", str(file))
        return files

    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    put()
    return put


@pytest.fixture
def stderr_of(capsys):
    """Run a command on the CPU that ends with this exit code; return what went to stderr."""

    def read(*words, code=2):
        assert run(*words) == code
        return capsys.readouterr().err

    return read


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three small photographs to train on, which no test changes."""
    return photographs(tmp_path_factory.mktemp("data") / "photos", [(48, 64), (56, 40), (40, 48)])


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Files of small models, by the name that results have from them."""
    folder = tmp_path_factory.mktemp("models")
    small = {"steps": 1, "hidden": 4, "encoder_blocks": 1, "stacked_blocks": (0,)}
    flows = {
        "tiny": build_upscaler(**small, encoder_width=4, encoder_growth=2),
        "other": build_upscaler(**small),
        "restorer": build_tiny("srflow", perturb=0.02, guide_layers=2, guide_width=4),
        "color": build_tiny("colorizer", perturb=0.02),
        "night": build_tiny("llflow", perturb=0.02),
        "both-ways": build_tiny("hcflow", rescaling=True, perturb=0.02, steps=1),
        "small-glow": build_tiny("glow", steps=1, hidden=4, image_size=16, mixing="conv"),
        "digits": build_tiny("class_conditional", image_size=(28, 28), steps=1),
    }
    files = {name: folder / f"{name}.safetensors" for name in flows}
    for name, flow in flows.items():
        save(flow, files[name], provenance={"licence": "CC0-1.0", "source": "a test"})
    return files | {"small-colorizer": write_colorizer(folder / "small-colorizer.safetensors")}


@pytest.fixture(scope="session")
def model(model_files):
    return model_files["tiny"]


@pytest.fixture(scope="session")
def small_glow(model_files):
    return model_files["small-glow"]


@pytest.fixture(scope="session")
def small_colorizer(model_files):
    return model_files["small-colorizer"]
