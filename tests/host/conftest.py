"""Real ComfyUI servers for the tests: each boots once, with this pack and a probe pack installed."""

import contextlib

import comfyui
import pytest
import small_flows
from PIL import Image
from talk import CREDENTIALS, HERE, WORKFLOWS, Host, plug_ins


@pytest.fixture(scope="session", params=list(comfyui.trees()))
def server(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    packs = HERE / "probe", *plug_ins(tmp_path_factory.mktemp("plug-ins"))
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, file in CREDENTIALS.items():
                patch.setenv(name, str(base / file))
            server = stack.enter_context(comfyui.running(comfyui.tree(request.param), base, packs=packs))
        yield server


@pytest.fixture
def host(server):
    """The server, seen by a script; whatever a test has done to it, it lives on."""
    yield Host(server)
    assert server.alive(), "the server has died:\n" + server.console()[-2000:]


@pytest.fixture
def photo(host):
    """A small, textured piece of the sample photograph in the server's input folder; 24 wide, 16 high."""
    return host.put("small.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((120, 40, 144, 56)))


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("flows")


@pytest.fixture
def flows(host, store):
    """The small flows are in the server's models/flows: name in `small_flows` to name in the loader."""
    models = host.server.base / "models" / "flows"
    return {name: small_flows.install(name, models, store) for name in small_flows.KINDS}


@pytest.fixture
def folder_of_photos(host):
    """The name of a folder in the server's input folder, with three pictures."""
    folder = host.server.base / "input" / "photos"
    folder.mkdir(exist_ok=True)
    whole = Image.open(WORKFLOWS / "photo.png").convert("RGB")
    for k in range(3):
        whole.crop((40 * k, 20, 40 * k + 96, 116)).save(folder / f"{k}.png")
    return folder.name
