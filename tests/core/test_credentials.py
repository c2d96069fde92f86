"""Content credentials: signed, read back by the library of the standard, and nothing is lost where it fails."""

import base64
import datetime
import errno
import http.server
import io
import json
import os
import pickle
import re
import sys
import threading

import c2pa
import pytest
import torch
from builders import png_chunk
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

import flowcore
from flowcore import FlowError
from flowcore.batch.credentials import EDITED, GENERATED, Signer, sign
from flowcore.batch.job import JobSpec
from flowcore.cli.credentials import make_certificate
from flowcore.images import files
from flowcore.images.metadata import C2PA, NOT_SIGNED
from flowcore.models.identity import model_sha256

from .commands import contents, names, photograph, run

MADE = [{"node": "FlowcoreUpscale", "model": "srflow-x4", "seed": 3}]
UNTRUSTED = ("signingCredential.untrusted",)
NOW = datetime.datetime.now(datetime.timezone.utc)


def picture(path, seed=0):
    """A file of noise, in the format that its name says."""
    pixels = torch.randint(0, 256, (24, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def changed(path, place=-60):
    """Change a byte of a file's pixels."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return path


def damaged(path, content):
    """Put a chunk for credentials into a PNG that hold something else."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + png_chunk(b"caBX", content) + data[33:])
    return path


def statement(path, label):
    """What the credentials of a picture say under a label."""
    manifest = flowcore.read_credentials(path).manifest
    return next(each["data"] for each in manifest["assertions"] if each["label"] == label)


def actions(path):
    return [(each["action"], each.get("digitalSourceType")) for each in statement(path, "c2pa.actions.v2")["actions"]]


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_a_signed_file_is_valid_and_a_changed_byte_is_noticed(certificate, tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}")
    before = files.read(path.read_bytes(), "a").pixels
    flowcore.sign_picture(path, source=picture(tmp_path / "source.jpg"), recipe=MADE)
    found = flowcore.read_credentials(path)
    assert (found.state, found.problems) == ("Valid", UNTRUSTED)
    assert torch.equal(files.read(path.read_bytes(), "a").pixels, before)
    place = path.read_bytes().index(b"IDAT") + 40 if suffix == "png" else -60
    assert flowcore.read_credentials(changed(path, place)).state == "Invalid"


def test_an_enlargement_names_model_seed_settings_and_its_source(certificate, model, tmp_path):
    source, out = photograph(tmp_path / "in" / "anna.png", (12, 9)), tmp_path / "out"
    options = ("--seed", 7, "--calm-edges", 0.25, "--credentials")
    assert run("upscale", source, "--model", model, "-o", out, "--samples", 2, *options) == 0
    sha = model_sha256(flowcore.load(model))
    for seed, name in zip((7, 8), names(out), strict=True):
        assert actions(out / name) == [("c2pa.opened", None), ("c2pa.edited", EDITED)]
        (recipe,) = statement(out / name, "flowcore.recipe")["entries"]
        assert (recipe["model"], recipe["model_sha256"], recipe["seed"]) == ("tiny.safetensors", sha, seed)
        assert recipe["settings"]["calm_edges"] == 0.25
        (block,) = statement(out / name, "c2pa.soft-binding")["blocks"]
        assert block["value"] == f"{sha}:{seed}"
        manifest = flowcore.read_credentials(out / name).manifest
        assert [each["relationship"] for each in manifest["ingredients"]] == ["parentOf"]
        assert manifest["claim_generator_info"][0]["name"] == "flowcore"
        assert "thumbnail" not in manifest
        data = (out / name).read_bytes()
        assert not [word for word in (b"anna", bytes(tmp_path), b"my secrets") if word in data]


def test_samples_are_generated_and_morphs_have_two_inputs(certificate, small_glow, tmp_path):
    photo = photograph(tmp_path / "photo.png", (16, 16))
    assert run("sample", "--model", small_glow, "-o", tmp_path / "s.webp", "--samples", 1, "--credentials") == 0
    words = ("interpolate", photo, photo, "--model", small_glow, "-o", tmp_path / "m.jpg", "--frames", 1)
    assert run(*words, "--credentials") == 0
    assert actions(tmp_path / "s.webp") == [("c2pa.created", GENERATED)]
    assert actions(tmp_path / "m.jpg") == [("c2pa.created", EDITED)]
    inputs = flowcore.read_credentials(tmp_path / "m.jpg").manifest["ingredients"]
    assert [each["relationship"] for each in inputs] == ["inputTo"] * 2


def test_without_noise_nothing_is_bound_to_a_seed(certificate, model, tmp_path):
    words = ("upscale", photograph(tmp_path / "a.png", (9, 8)), "--model", model, "-o", tmp_path / "b.png")
    assert run(*words, "--temperature", 0, "--credentials") == 0
    with pytest.raises(StopIteration):
        statement(tmp_path / "b.png", "c2pa.soft-binding")


def test_paths_in_settings_and_seeds_of_64_bits_can_be_said(certificate, tmp_path):
    path = picture(tmp_path / "a.png")
    settings = {"face_model": "/home/anna/faces.safetensors", "model": r"C:\anna\x.pth", "tile": float("inf")}
    flowcore.sign_picture(path, recipe=[{"node": "n", "seed": 2**64 - 1, "settings": settings}])
    (entry,) = statement(path, "flowcore.recipe")["entries"]
    assert entry["seed"] == str(2**64 - 1)
    assert entry["settings"] == {"face_model": "faces.safetensors", "model": "x.pth", "tile": None}
    assert b"anna" not in path.read_bytes()


def test_the_recipe_in_a_png_is_what_is_said(certificate, model, tmp_path):
    path = tmp_path / "b.png"
    assert run("upscale", photograph(tmp_path / "a.png", (9, 8)), "--model", model, "-o", path, "--seed", 4) == 0
    flowcore.sign_picture(path)
    assert statement(path, "flowcore.recipe")["entries"][0]["seed"] == 4
    assert run("verify", path, "--model", model) == 0  # the recipe is still there


def test_of_the_prompt_of_a_canvas_only_the_nodes_are_said(certificate, tmp_path):
    prompt = {"1": {"class_type": "FlowcoreUpscale", "inputs": {"mark": "a secret phrase", "source": "anna.png"}}}
    path = tmp_path / "a.png"
    path.write_bytes(files.encode(torch.rand(3, 8, 8), text={"prompt": json.dumps(prompt)}))
    flowcore.sign_picture(path)
    assert statement(path, "flowcore.recipe")["entries"] == [{"node": "FlowcoreUpscale"}]


def test_without_a_recipe_nothing_is_said(certificate, tmp_path):
    for name in ("a.png", "a.jpg"):
        path = picture(tmp_path / name)
        before = path.read_bytes()
        with pytest.raises(FlowError, match="recipe"):
            flowcore.sign_picture(path)
        with pytest.raises(FlowError, match="Expected a recipe, whose entries have a node"):
            flowcore.sign_picture(path, recipe=[{"model": "m"}])
        assert path.read_bytes() == before


def test_a_format_without_credentials_is_refused(certificate, tmp_path):
    path = picture(tmp_path / "a.bmp")
    before = path.read_bytes()
    with pytest.raises(FlowError, match="go into PNG, JPEG, WebP, TIFF and AVIF files"):
        flowcore.sign_picture(path, recipe=MADE)
    assert path.read_bytes() == before


# --- sources with credentials -----------------------------------------------------------------------------------------


def test_the_credentials_of_a_source_are_kept_and_their_note_goes(certificate, model, tmp_path, capsys):
    source = picture(tmp_path / "a.webp")
    flowcore.sign_picture(source, recipe=MADE)
    words = ("upscale", source, "--model", model, "-o", tmp_path / "b.tif")
    assert run(*words) == 0
    assert NOT_SIGNED in capsys.readouterr().err
    assert run(*words, "--credentials") == 0
    assert NOT_SIGNED not in capsys.readouterr().err
    found = flowcore.read_credentials(tmp_path / "b.tif")
    assert (found.state, len(found.manifests)) == ("Valid", 2)
    assert found.manifest["ingredients"][0]["active_manifest"] in found.manifests


def test_a_source_that_was_changed_is_said(certificate, tmp_path):
    source, path, said = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg"), []
    flowcore.sign_picture(source, recipe=MADE)
    flowcore.sign_picture(path, source=changed(source), recipe=MADE, notify=said.append)
    assert len(said) == 1
    assert "not valid (signingCredential.untrusted, assertion.dataHash.mismatch)" in said[0]
    (ingredient,) = flowcore.read_credentials(path).manifest["ingredients"]
    codes = [each["code"] for each in ingredient["validation_results"]["activeManifest"]["failure"]]
    assert "assertion.dataHash.mismatch" in codes


@pytest.mark.parametrize("content", [b"garbage" * 9, bytes(64), b"\0\0\0\x28jumb\0\0\0\x20jumd" + C2PA + b"\3c2pa\0"])
def test_damaged_credentials_of_a_source_lose_nothing(certificate, tmp_path, content):
    source, path, said = damaged(picture(tmp_path / "a.png"), content), picture(tmp_path / "b.png"), []
    flowcore.sign_picture(path, source=source, recipe=MADE, notify=said.append)
    assert said == ["Its content credentials cannot be read, so they are not kept."]
    found = flowcore.read_credentials(path)
    assert found.state == "Valid"
    assert found.manifest["ingredients"][0]["description"] == said[0]
    assert flowcore.read_credentials(source).state == "Invalid"


def test_a_source_whose_own_source_is_damaged_loses_nothing(certificate, tmp_path):
    """It can be read, but signing with it fails."""
    source, path, said = picture(tmp_path / "a.png"), picture(tmp_path / "b.png"), []
    for node in ("first", "second"):
        flowcore.sign_picture(source, recipe=[{"node": node}])
    data = source.read_bytes()
    start, (*_, place) = data.index(b"caBX") + 4, (found.start() for found in re.finditer(b"first", data))
    content = bytearray(data[start : start + int.from_bytes(data[start - 8 : start - 4], "big")])
    content[place - start] = 0xFF  # no UTF-8
    source.write_bytes(data[: start - 8] + png_chunk(b"caBX", bytes(content)) + data[start + len(content) + 4 :])
    assert flowcore.read_credentials(source).manifest
    flowcore.sign_picture(path, source=source, recipe=MADE, notify=said.append)
    assert said == ["Its content credentials cannot be read, so they are not kept."]
    assert flowcore.read_credentials(path).state == "Valid"


def test_a_signed_file_becomes_the_source_of_itself(certificate, tmp_path):
    path = picture(tmp_path / "a.png")
    flowcore.sign_picture(path, recipe=[{"node": "FlowcoreSample"}])
    flowcore.sign_picture(path, recipe=MADE)
    found = flowcore.read_credentials(path)
    assert (found.state, len(found.manifests)) == ("Valid", 2)
    assert actions(path) == [("c2pa.opened", None), ("c2pa.edited", EDITED)]
    with pytest.raises(FlowError, match="Leave source out"):
        flowcore.sign_picture(path, source=path, recipe=MADE)


def test_no_result_has_the_credentials_of_its_source(certificate, tmp_path):
    """Those of a TIFF are one of its tags, and tags are kept."""
    path = picture(tmp_path / "a.tif")
    flowcore.sign_picture(path, recipe=MADE)
    image = files.read(path.read_bytes(), "a")
    for format in files.SUFFIXES:
        assert C2PA not in files.encode(image.pixels[0], image.metadata, format=format)


# --- certificate and key ----------------------------------------------------------------------------------------------


def pem(key, *, password=None):
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


CURVE = ec.generate_private_key(ec.SECP256R1())
REFUSED = {
    "expired": ({"start": NOW - datetime.timedelta(days=9), "days": 8}, "expired on 20"),
    "too early": ({"start": NOW + datetime.timedelta(days=1)}, "is not valid before 20"),
    "world-readable": ({"mode": 0o644}, "chmod 600 key.pem"),
    "group-writable": ({"mode": 0o620}, "chmod 600 key.pem"),
    "another key": ({"key": pem(CURVE)}, "is not that of the key"),
    "a password": ({"key": pem(CURVE, password=b"word")}, "without a password"),
    "another curve": ({"key": pem(ec.generate_private_key(ec.SECP256K1()))}, "P-256"),
    "no key": ({"key": b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n"}, "cannot be used"),
    "no certificate": ({"chain": b"SECRET"}, "no certificates in a PEM file"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_sign_is_refused_before_the_work(certificate, model, tmp_path, stderr_of, wrong):
    fields, message = REFUSED[wrong]
    certificate(**fields)
    words = ("upscale", picture(tmp_path / "a.png"), "--model", model, "-o", tmp_path / "out", "--credentials")
    said = stderr_of(*words, code=2)
    assert message in said
    assert "SECRET" not in said
    assert not (tmp_path / "out").exists()
    path = picture(tmp_path / "b.png")
    before = path.read_bytes()
    with pytest.raises(FlowError) as raised:
        flowcore.sign_picture(path, recipe=MADE)
    assert raised.value.__cause__ is None
    assert path.read_bytes() == before


def test_files_that_are_missing_are_named(certificate, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    certificate()[1].unlink()
    with pytest.raises(FlowError, match=r"The key of the content credentials, key\.pem, cannot be read: No such file"):
        flowcore.sign_picture(path, recipe=MADE)
    monkeypatch.delenv("FLOWCORE_KEY")
    with pytest.raises(FlowError, match=r"Name their files in .*credentials\.ini, or in FLOWCORE_CERTIFICATES"):
        flowcore.sign_picture(path, recipe=MADE)


def test_keys_of_all_kinds_sign(certificate):
    kinds = {
        "es256": CURVE,
        "es384": ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }
    kinds["ps256"] = rsa.generate_private_key(65537, 2048)
    data = files.encode(torch.rand(3, 8, 8))
    for algorithm, key in kinds.items():
        chain, _ = make_certificate(own=key)
        certificate(chain, pem(key))
        signer = Signer.load()
        assert signer.algorithm == algorithm
        with c2pa.Reader("image/png", io.BytesIO(sign(data, MADE, signer))) as reader:
            assert reader.get_validation_state() == "Valid"


def test_the_key_is_in_nothing_that_a_run_leaves(certificate, model, tmp_path, capfd):
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(2):
        photograph(folder / f"{number}.png", (9, 8), seed=number)
    (folder / "broken.png").write_bytes(b"no picture")
    key = certificate()[1].read_bytes()
    assert run("upscale", folder, "--model", model, "-o", out, "--credentials", "--json") == 3
    left = [*contents(out).values(), (out / "manifest.csv").read_bytes(), *map(str.encode, capfd.readouterr())]
    left += [repr(Signer.load()).encode(), pickle.dumps(JobSpec(command="upscale", model="m", credentials=True))]
    secret = base64.b64decode(b"".join(key.splitlines()[1:-1]))
    forms = [
        *key.splitlines()[1:-1],
        secret,
        secret[36:68],
        secret[36:68].hex().encode(),
        base64.b64encode(secret[36:68]),
    ]
    assert len(left) == 7
    assert not [form for form in forms for each in left if form in each]


def test_without_the_library_the_advice_says_what_to_install(certificate, model, tmp_path, stderr_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    words = ("upscale", picture(tmp_path / "a.png"), "--model", model, "-o", tmp_path / "out")
    assert "pip install c2pa-python" in stderr_of(*words, "--credentials", code=2)
    assert run(*words) == 0


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_file_as_it_was(certificate, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlowError, match="The disk is full"):
        flowcore.sign_picture(path, recipe=MADE)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.png", "my secrets/chain.pem", "my secrets/key.pem"]


def test_a_picture_that_could_not_be_signed_is_not_there_and_the_others_are(certificate, model, tmp_path, monkeypatch):
    for number in range(3):
        photograph(tmp_path / "in" / f"{number}.png", (9, 8), seed=number)
    whole, count = c2pa.Builder.sign, []

    def second_fails(*arguments):
        count.append(1)
        if len(count) in (2, 3):  # it is tried twice
            raise c2pa.C2paError("Signature: the certificate was not valid at time of signing")
        return whole(*arguments)

    monkeypatch.setattr(c2pa.Builder, "sign", second_fails)
    assert run("upscale", tmp_path / "in", "--model", model, "-o", tmp_path / "out", "--credentials") == 3
    assert len(contents(tmp_path / "out")) == 2
    assert "not valid at time of signing" in (tmp_path / "out" / "manifest.csv").read_text()
    assert run("upscale", tmp_path / "in", "--model", model, "-o", tmp_path / "out", "--credentials") == 0
    assert len(contents(tmp_path / "out")) == 3


@pytest.mark.parametrize("command", ["upscale", "sample"])
def test_results_that_are_there_unsigned_are_made_again(certificate, model, small_glow, tmp_path, command):
    photo, out = photograph(tmp_path / "a.png", (9, 8)), tmp_path / "b.png"
    words = {"upscale": [photo, "--model", model], "sample": ["--model", small_glow, "--samples", 1]}[command]
    assert run(command, *words, "-o", out) == 0
    plain = files.read(out.read_bytes(), "b").pixels
    assert run(command, *words, "-o", out, "--credentials") == 0
    signed = out.read_bytes()
    assert C2PA in signed
    assert torch.equal(files.read(signed, "b").pixels, plain)
    for more in ([], ["--credentials"]):
        assert run(command, *words, "-o", out, *more) == 0
        assert out.read_bytes() == signed


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """The address of a server that answers nothing useful, and the requests that it got."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def test_credentials_at_an_address_are_not_fetched(certificate, tmp_path, server):
    address, asked = server
    described = f'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{address}/far.c2pa"/>'
    xmp = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{described}</rdf:RDF>'
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{xmp}</x:xmpmeta>'
    path, source = picture(tmp_path / "a.png"), tmp_path / "b.jpg"
    source.write_bytes(files.encode(torch.rand(3, 8, 8), files.Metadata(xmp=xmp.encode()), format="jpeg"))
    with pytest.raises(c2pa.C2paError):
        c2pa.Reader("image/jpeg", io.BytesIO(source.read_bytes()))
    assert asked.pop() == "/far.c2pa"  # the library would
    assert flowcore.read_credentials(source).problems == ("manifest.inaccessible",)
    flowcore.sign_picture(path, source=source, recipe=MADE)
    assert flowcore.read_credentials(path).state == "Valid"
    assert asked == []


def test_a_time_stamp_authority_is_asked_only_if_it_is_set(certificate, tmp_path, server, monkeypatch):
    path, (address, asked) = picture(tmp_path / "a.png"), server
    flowcore.sign_picture(path, recipe=MADE)
    signed = path.read_bytes()
    assert asked == []
    monkeypatch.setenv("FLOWCORE_TIME_STAMP", f"{address}/stamp")
    with pytest.raises(FlowError, match=rf"could not be signed.*time-stamp authority at {address}/stamp answers"):
        flowcore.sign_picture(path, recipe=MADE)
    assert set(asked) == {"/stamp"}
    assert path.read_bytes() == signed


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(certificate, monkeypatch, tmp_path):
    """The folder of settings, without any, and without environment variables."""
    for name in ("CERTIFICATES", "KEY"):
        monkeypatch.delenv(f"FLOWCORE_{name}")
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "config")
    return tmp_path / "config"


def credentials(*words):
    return flowcore.cli.main.main(["credentials", *map(str, words)])


def test_init_makes_a_test_certificate_that_is_used_from_then_on(settings, tmp_path, capsys):
    assert credentials("init", "--time-stamp", "") == 0
    said = capsys.readouterr()
    assert "Nobody trusts it" in said.err
    assert said.out.strip() == str(settings / "credentials.ini")
    assert names(settings) == ["credentials.ini", "test-certificates.pem", "test-key.pem"]
    assert os.name != "posix" or (settings / "test-key.pem").stat().st_mode & 0o777 == 0o600
    path = picture(tmp_path / "a.png")
    flowcore.sign_picture(path, recipe=MADE)
    assert "nobody vouches for" in flowcore.read_credentials(path).manifest["signature_info"]["issuer"]


def test_init_replaces_only_its_own_files_and_only_if_asked(settings, capsys):
    assert credentials("init") == 0
    before = (settings / "test-key.pem").read_bytes()
    assert credentials("init") == 2
    assert (settings / "test-key.pem").read_bytes() == before
    assert credentials("init", "--again") == 0
    assert (settings / "test-key.pem").read_bytes() != before
    (settings / "credentials.ini").write_text("mine")
    assert credentials("init", "--again") == 2
    assert "is not a settings file" in capsys.readouterr().err


def test_init_names_a_certificate_once_it_can_sign(settings, certificate, capsys):
    chain, key = certificate()
    assert credentials("init", "--certificates", chain) == 2
    assert credentials("init", "--certificates", chain, "--key", chain) == 2
    assert not settings.exists()
    assert credentials("init", "--certificates", chain, "--key", key) == 0
    assert names(settings) == ["credentials.ini"]
    assert Signer.load().certificates == chain.read_bytes()


def test_settings_take_files_beside_them_and_are_not_quoted(settings, monkeypatch):
    settings.mkdir()
    chain, key = make_certificate()
    (settings / "c.pem").write_bytes(chain)
    (settings / "k.pem").write_bytes(key)
    (settings / "k.pem").chmod(0o600)
    (settings / "credentials.ini").write_text("[credentials]\ncertificates = c.pem\nkey = k.pem\n")
    monkeypatch.delenv("FLOWCORE_CERTIFICATES", raising=False)
    monkeypatch.delenv("FLOWCORE_KEY", raising=False)
    assert Signer.load().time_stamp is None
    (settings / "credentials.ini").write_bytes(key)
    with pytest.raises(FlowError, match="Expected lines such as") as raised:
        Signer.load()
    assert key.splitlines()[1].decode() not in str(raised.getrepr(style="long"))


def test_show_reads_what_others_have_signed(certificate, tmp_path, capsys):
    chain, key = make_certificate()
    claim = {
        "claim_generator_info": [{"name": "Other\x1b[31m", "version": "2"}],
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": GENERATED}]},
            }
        ],
    }
    other = tmp_path / "other.jpg"
    info = c2pa.C2paSignerInfo("es256", chain, key, None)
    signed = io.BytesIO()
    c2pa.Builder(claim).sign(c2pa.Signer.from_info(info), "image/jpeg", io.BytesIO(picture(other).read_bytes()), signed)
    other.write_bytes(signed.getvalue())
    assert credentials("show", other) == 0
    said = capsys.readouterr().out
    assert "other.jpg: valid (signingCredential.untrusted)\n  made with Other\\x1b[31m 2\n" in said
    assert "c2pa.created trainedAlgorithmicMedia" in said


def test_show_fails_for_pictures_without_valid_credentials(certificate, tmp_path, capsys):
    good, bad = picture(tmp_path / "good.png"), picture(tmp_path / "z.jpg")
    for path in (good, bad):
        flowcore.sign_picture(path, recipe=MADE)
    changed(bad)
    picture(tmp_path / "plain.bmp")
    assert credentials("show", tmp_path, "--json") == 1
    said = capsys.readouterr()
    rows = {os.path.basename(row["input"]): row["state"] for row in map(json.loads, said.out.splitlines())}
    assert rows == {"good.png": "Valid", "plain.bmp": None, "z.jpg": "Invalid"}
    assert "Without valid content credentials: 2 of 3." in said.err
    assert credentials("show", good) == 0
