"""Content credentials (C2PA): what made a picture, signed, inside its file; and reading anybody's.

``c2pa-python``, of the authors of the standard, signs and reads. The certificate chain, its key and, if wanted, the
address of a time-stamp authority are named in ``credentials.ini`` in the user's configuration folder, or in environment
variables. The key is read here only; no file, message or repr has it. No network is used unless that address is set.
"""

from __future__ import annotations

import configparser
import datetime
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..errors import VERSION, FlowError, say
from ..images import files
from ..images.metadata import C2PA
from ..images.opening import check_format_of, open_regular
from ..models.writing import write_atomic
from .provenance import Provenance, ProvenanceError, describe, picture_fingerprint

SETTINGS = ("certificates", "key", "time_stamp")  # in the settings file; FLOWCORE_CERTIFICATES, ... override them
SECTION = "credentials"
MAX_PEM = 2**20  # bytes
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
OFFLINE = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED, EDITED = f"{IPTC}trainedAlgorithmicMedia", f"{IPTC}compositeWithTrainedAlgorithmicMedia"
GENERATORS = {"FlowcoreSample", "FlowcoreSampleGrid"}  # nodes that make pictures from noise alone
RECIPE = "flowcore.recipe"  # label of the assertion with the recipe
NOISE = "flowcore.noise.1"  # how a picture is traced without its metadata: model and seed, which ``verify`` compares
NOT_KEPT = say("Its content credentials cannot be read, so they are not kept.")
Notify = Callable[[str], object]


def _library() -> Any:
    """Import what signs and reads; FlowError if it is not installed."""
    try:
        import c2pa  # pyright: ignore[reportMissingTypeStubs]
    except (ImportError, OSError) as error:
        raise FlowError(
            f"Content credentials need c2pa-python ({error}). Install it beside flowcore: pip install c2pa-python "
            "platformdirs; or leave credentials off."
        ) from error
    return c2pa


# --- certificate and key ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signer:
    """What pictures are signed with."""

    certificates: bytes = field(repr=False)  # PEM, the signer's own first
    key: bytes = field(repr=False)  # PEM
    algorithm: str
    time_stamp: str | None = None  # address of an authority that confirms when a picture was signed

    @staticmethod
    def load() -> Signer:
        """Read certificates and key from the files that the settings name; FlowError says what is wrong with them."""
        _library()
        named = read_settings()
        if not all(named.get(name) for name in SETTINGS[:2]):
            variables = " and ".join(f"FLOWCORE_{name.upper()}" for name in SETTINGS[:2])
            raise FlowError(
                "Pictures are signed with a certificate and its key, and none are set. Name their files in "
                f"{settings_file(short=True)}, or in {variables}; `flowcore credentials init` makes a test "
                "certificate. See docs/marking.md."
            )
        certificates, key = (read_pem(name, named[name]) for name in SETTINGS[:2])
        return signer_of(certificates, key, named["time_stamp"] or None)


def signer_of(certificates: bytes, key: bytes, time_stamp: str | None = None) -> Signer:
    """Check that a certificate chain is in date and belongs to a key, both PEM; causes, which might quote them, go."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    private, algorithm = None, None
    with suppress(Exception):
        private = serialization.load_pem_private_key(key, None)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        algorithm = CURVES.get(private.curve.name)
    elif isinstance(private, (ed25519.Ed25519PrivateKey, rsa.RSAPrivateKey)):
        algorithm = "ps256" if isinstance(private, rsa.RSAPrivateKey) else "ed25519"
    if private is None or algorithm is None:
        raise FlowError(
            "The key of the content credentials cannot be used. Expected a PEM file of a private key without a "
            "password: EC (P-256, P-384 or P-521), Ed25519 or RSA."
        )
    try:
        own = x509.load_pem_x509_certificates(certificates)[0]
    except ValueError:
        raise FlowError("The certificates of the content credentials are no certificates in a PEM file.") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if own.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise FlowError(
            "The first certificate of the content credentials is not that of the key. Put the signer's own first and "
            "those of its issuers after it, and name its key."
        )
    now = datetime.datetime.now(datetime.timezone.utc)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        expired, first = f"expired on {own.not_valid_after_utc:%Y-%m-%d}", own.not_valid_before_utc
        when = expired if now > first else f"is not valid before {first:%Y-%m-%d}"
        raise FlowError(
            f"The certificate of the content credentials {when}. Get another one; `flowcore credentials init --again` "
            "makes a new test certificate."
        )
    encoding, format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Signer(
        certificates, private.private_bytes(encoding, format, serialization.NoEncryption()), algorithm, time_stamp
    )


def settings_file(*, short: bool = False) -> Path:
    """Return where the settings are, which need not exist; ``short`` for messages, without the name of a person."""
    try:
        import platformdirs
    except ImportError as error:
        raise FlowError("Settings need platformdirs. Install it: pip install platformdirs.") from error
    path = platformdirs.user_config_path("flowcore", appauthor=False) / "credentials.ini"
    return Path("~") / path.relative_to(Path.home()) if short and path.is_relative_to(Path.home()) else path


def read_settings() -> dict[str, str]:
    """Read the settings, by name: files, relative to that of the settings, and an address; "" for those not set."""
    path, parser = settings_file(), configparser.ConfigParser(interpolation=None)
    try:
        with suppress(OSError), path.open(encoding="utf-8", errors="surrogateescape") as file:
            parser.read_file(file)
    except (configparser.Error, ValueError):  # whose texts quote the file, which may hold what it should not
        example = "[credentials], certificates = FILE, key = FILE"
        raise FlowError(f"{settings_file(short=True)} cannot be read. Expected lines such as {example}.") from None
    found = dict(parser[SECTION]) if parser.has_section(SECTION) else dict[str, str]()
    named = {name: str(path.parent / Path(found[name]).expanduser()) for name in SETTINGS[:2] if found.get(name)}
    named["time_stamp"] = found.get("time_stamp", "")
    return {name: os.environ.get(f"FLOWCORE_{name.upper()}") or named.get(name, "") for name in SETTINGS}


def read_pem(kind: str, path: str | Path) -> bytes:
    """Read a PEM file, a key only if nobody else may."""
    name = Path(path).name
    try:
        with open_regular(Path(path)) as file:
            mode, content = os.fstat(file.fileno()).st_mode & 0o777, file.read(MAX_PEM)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlowError(f"The {kind} of the content credentials, {name}, cannot be read: {reason}.") from error
    if kind == "key" and os.name == "posix" and mode & 0o077:
        raise FlowError(
            f"Others may read or change the key {name}: its mode is {mode:03o}. It is not used. Make it yours alone: "
            f"chmod 600 {name}. If somebody may have read it, get another one."
        )
    return content


# --- signing ----------------------------------------------------------------------------------------------------------


def sign_picture(
    path: str | Path,
    *,
    source: str | Path | None = None,
    recipe: Sequence[Mapping[str, Any]] | None = None,
    notify: Notify | None = None,
) -> None:
    """Sign a picture file with content credentials (C2PA) that say what made it; the file is replaced atomically.

    They name flowcore and its version, the action with the IPTC's digital source type, model, seed and settings as in
    the recipe, and the source. Certificate and key are those of the settings (``docs/marking.md``). A file that has
    credentials keeps them: it becomes the source of the signed one.

    >>> from pathlib import Path
    >>> from flowcore.images import files
    >>> _ = Path("small.png").write_bytes(files.encode(torch.rand(3, 8, 8)))
    >>> _ = Path("large.webp").write_bytes(files.encode(torch.rand(3, 32, 32), format="webp"))
    >>> made = {"node": "FlowcoreUpscale", "model": "srflow-x4", "seed": 3}
    >>> flowcore.sign_picture("large.webp", source="small.png", recipe=[made])
    >>> flowcore.read_credentials("large.webp").state
    'Valid'

    Args:
        path: A PNG, JPEG, WebP, TIFF or AVIF file.
        source: The file that the picture was made from, if any; not for a file that has credentials.
        recipe: What made it, an entry of JSON types for each step, the last one last, with at least a "node":
            "FlowcoreSample" says that a model generated the picture, anything else that it changed one. By default that
            in the file itself, which flowcore writes into PNG files.
        notify: Called with sentences on a source whose credentials are not valid.

    Raises:
        FlowError: If there is no certificate, key or recipe, or if signing fails; the file stays as it was.
        ImageError: If a file is not an image.

    Source: C2PA Technical Specification 2, https://spec.c2pa.org.
    """
    path, signer = Path(path), Signer.load()
    data = files.read_bytes(path)
    if C2PA in data and source is not None:
        raise FlowError(f"{path.name} has content credentials, which say what it was made from. Leave source out.")
    fingerprint = ""
    if recipe is None:
        recipe = [
            entry if "model_sha256" in entry else {"node": entry["node"]}  # that of a prompt may hold anything
            for entry in describe(path)
        ]
        fingerprint = picture_fingerprint(files.read(data, path.name).pixels[0])
    sources = [data] if C2PA in data else [] if source is None else [files.read_bytes(Path(source))]
    write_atomic(path, sign(data, recipe, signer, picture=fingerprint, sources=sources, notify=notify))


def sign(
    data: bytes,
    recipe: Sequence[Mapping[str, Any]],
    signer: Signer,
    *,
    picture: str = "",
    sources: Sequence[bytes] = (),
    notify: Notify | None = None,
) -> bytes:
    """Sign the contents of a picture file, see ``sign_picture``; ``picture`` is its fingerprint, as in its recipe.

    One of several ``sources`` is no parent, but an input of what made the picture.
    """
    c2pa = _library()
    found = [_read(source) for source in sources]
    unreadable = [each is not None and not each.manifest for each in found]
    invalid = [each is not None and each.state == "Invalid" for each in found]
    problem: Exception | None = None
    for dropped in (unreadable, invalid):  # some that are damaged make signing fail
        try:
            signed = _sign(data, _statement(recipe, picture, len(sources)), signer, sources, dropped)
        except c2pa.C2paError.NotSupported as error:
            formats = "PNG, JPEG, WebP, TIFF and AVIF"
            raise FlowError(f"Content credentials go into {formats} files. Save the picture as one of them.") from error
        except c2pa.C2paError as error:
            problem = error
            continue
        for each, is_dropped in zip(found, dropped, strict=True):
            if each is not None and each.state == "Invalid" and notify is not None:
                codes = ", ".join(each.problems)
                said = say(
                    "Its content credentials are not valid ({reason}), which those of the result say, too.",
                    reason=codes,
                )
                notify(NOT_KEPT if is_dropped else said)
        return signed
    authority = f", and that the time-stamp authority at {signer.time_stamp} answers" if signer.time_stamp else ""
    raise FlowError(
        f"The picture could not be signed, and is not saved: {problem}. Check the certificate{authority}; or leave "
        "credentials off."
    ) from problem


def _sign(
    data: bytes, statement: dict[str, Any], signer: Signer, sources: Sequence[bytes], dropped: Sequence[bool]
) -> bytes:
    """Sign a picture; the credentials of sources are kept, unless they are dropped."""
    c2pa, signed = _library(), io.BytesIO()
    builder = c2pa.Builder(statement, context=c2pa.Context.from_dict(OFFLINE))
    for number, source in enumerate(sources):
        ingredient, kind = {"label": f"source{number}"}, _mime_type(source)
        ingredient["relationship"] = "parentOf" if len(sources) == 1 else "inputTo"
        if dropped[number]:
            ingredient["description"], kind = NOT_KEPT, "application/octet-stream"
        builder.add_ingredient(ingredient, kind, io.BytesIO(source))
    info = c2pa.C2paSignerInfo(signer.algorithm, signer.certificates, signer.key, signer.time_stamp)
    builder.sign(c2pa.Signer.from_info(info), _mime_type(data), io.BytesIO(data), signed)
    return signed.getvalue()


def _mime_type(data: bytes) -> str:
    format = check_format_of(io.BytesIO(data))
    return Image.MIME.get(format, f"image/{format.lower()}")


def _statement(recipe: Sequence[Mapping[str, Any]], picture: str, sources: int) -> dict[str, Any]:
    """Return what is said of a picture that has a recipe and so many sources, as the library takes it."""
    if not recipe or not all(isinstance(entry.get("node"), str) for entry in recipe):
        raise FlowError("Nothing says what made the picture. Expected a recipe, whose entries have a node.")
    number = next((k for k, entry in enumerate(recipe) if picture in entry.get("pictures", ())), -1)
    entries = [_stated(entry, picture) for entry in recipe]
    made, ingredients = entries[number], {"ingredientIds": [f"source{number}" for number in range(sources)]}
    step: dict[str, Any] = {"digitalSourceType": GENERATED if made["node"] in GENERATORS else EDITED}
    step |= {"softwareAgent": {"name": str(made.get("model") or "flowcore")}, "description": made["node"]}
    if sources == 1:
        actions = [{"action": "c2pa.opened", "parameters": ingredients}, {"action": "c2pa.edited", **step}]
    else:
        actions = [{"action": "c2pa.created", **step, **({"parameters": ingredients} if sources else {})}]
    assertions: list[dict[str, Any]] = [
        {"label": "c2pa.actions.v2", "data": {"actions": actions}},
        {"label": RECIPE, "data": {"entries": entries}},
    ]
    if made.get("model_sha256") and made.get("temperature"):  # without noise, no seed can be found
        block = {"scope": {}, "value": f"{made['model_sha256']}:{made.get('seed', '')}"}
        assertions.append({"label": "c2pa.soft-binding", "data": {"alg": NOISE, "blocks": [block]}})
    return {"claim_generator_info": [{"name": "flowcore", "version": VERSION}], "assertions": assertions}


def _stated(entry: Mapping[str, Any], picture: str) -> dict[str, Any]:
    """Return what is said of a step: its entry, without what other pictures it made, and with the seed of this one."""
    stated = {name: _plain(value) for name, value in entry.items() if name not in ("pictures", "node_id")}
    with suppress(ProvenanceError):
        stated["seed"] = _plain(Provenance.from_json(dict(entry)).drawn_with(picture))
    return stated


def _plain(value: Any) -> Any:
    """Return a value that a manifest can hold: of numbers those of 64 bits with a sign, and of paths the last name."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, str):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool) or abs(value) < 2**63 else str(value)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credentials:
    """What the content credentials in a picture file say.

    Attributes:
        state: "Valid": nothing was changed since it was signed, by a signer whom no list of the library vouches for;
            "Trusted": also the signer is on one; "Invalid": the file or what it says was changed, is damaged, or is at
            an address, which is not opened ("manifest.inaccessible").
        problems: What was found, in the standard's codes, such as "assertion.dataHash.mismatch".
        manifest: The statement that was signed last, of JSON types: claim_generator_info, assertions, ingredients and
            signature_info. Empty if it is damaged.
        manifests: Those of the sources, and this one, by their labels.
    """

    state: str
    problems: tuple[str, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    manifests: dict[str, Any] = field(default_factory=dict[str, Any])


def read_credentials(path: str | Path) -> Credentials | None:
    """Read the content credentials (C2PA) in a picture file, whoever signed it, without a network.

    >>> from pathlib import Path
    >>> from flowcore.images import files
    >>> _ = Path("plain.png").write_bytes(files.encode(torch.rand(3, 8, 8)))
    >>> flowcore.read_credentials("plain.png") is None
    True

    Args:
        path: A file of any format that flowcore reads.

    Returns:
        What they say, or None if the file has none.

    Raises:
        ImageError: If the file is not an image.
        FlowError: If c2pa-python is not installed.
    """
    return _read(files.read_bytes(Path(path)))


def _read(data: bytes) -> Credentials | None:
    c2pa = _library()
    try:
        with c2pa.Reader(_mime_type(data), io.BytesIO(data), context=c2pa.Context.from_dict(OFFLINE)) as reader:
            report = json.loads(reader.json())
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
        return None
    except (c2pa.C2paError, ValueError, RecursionError) as error:
        is_elsewhere = str(error).startswith("Remote")
        return Credentials("Invalid", ("manifest.inaccessible" if is_elsewhere else str(error),))
    manifests = report.get("manifests", {})
    problems = tuple(dict.fromkeys(status["code"] for status in report.get("validation_status", ())))
    manifest = manifests.get(report.get("active_manifest"), {})
    return Credentials(report.get("validation_state", "Invalid"), problems, manifest, manifests)
