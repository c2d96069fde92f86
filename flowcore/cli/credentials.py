"""The command of content credentials: init names or makes a certificate and its key, show reads what a picture says."""

import configparser
import datetime
import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..batch import folders
from ..batch.credentials import SECTION, Credentials, read_credentials, read_pem, settings_file, signer_of
from ..errors import FlowError, printable
from ..models.writing import replacing, write_atomic
from .output import check_overwrite, log, to_json

DAYS = 365  # a test certificate is valid
TEST = "flowcore test certificate, which nobody vouches for"
NAMES = "test-certificates.pem", "test-key.pem"  # files of a test certificate, beside the settings


def prepare_credentials(options: Namespace) -> Callable[[], None]:
    return prepare_init(options) if options.action == "init" else partial(_show, options)


def prepare_init(options: Namespace) -> Callable[[], None]:
    settings = settings_file()
    check_overwrite(
        settings, lambda path: f"[{SECTION}]" in path.read_text(errors="replace"), "settings file", again=options.again
    )
    if (options.certificates is None) != (options.key is None):
        raise FlowError("A certificate and its key belong together: give both --certificates and --key, or neither.")
    files = [path for path in (options.certificates, options.key) if path is not None]
    if files:
        signer_of(read_pem("certificates", files[0]), read_pem("key", files[1]))
    else:
        for name in NAMES:
            check_overwrite(settings.with_name(name), Path.is_file, "test certificate", again=options.again)
    return partial(_init, settings, files, options.time_stamp)


def _init(settings: Path, files: list[Path], time_stamp: str | None) -> None:
    if not files:
        files = [settings.with_name(name) for name in NAMES]
        certificates, key = make_certificate()
        with replacing(files[1]) as partial_file:
            descriptor = os.open(partial_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
        write_atomic(files[0], certificates)
        log(f"Made a test certificate for {DAYS} days. Nobody trusts it: it shows that pictures are whole, not whose.")
    parser, text = configparser.ConfigParser(interpolation=None), io.StringIO()
    parser[SECTION] = dict(zip(("certificates", "key"), (str(path.absolute()) for path in files), strict=True))
    parser[SECTION]["time_stamp"] = time_stamp or ""
    parser.write(text)
    write_atomic(settings, text.getvalue().encode("utf-8", "surrogateescape"))
    sys.stdout.write(f"{printable(str(settings))}\n")


def make_certificate(
    days: float = DAYS, start: datetime.datetime | None = None, own: Any = None
) -> tuple[bytes, bytes]:
    """Make a certificate with that of its issuer, whose key is thrown away, and its own key, unless given: PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    start = start or datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    issuer, own = ec.generate_private_key(ec.SECP256R1()), own or ec.generate_private_key(ec.SECP256R1())
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)

    def name(common: str) -> x509.Name:
        attributes = {NameOID.ORGANIZATION_NAME: TEST, NameOID.COMMON_NAME: common}
        return x509.Name([x509.NameAttribute(*attribute) for attribute in attributes.items()])

    def certificate(subject: str, key: Any, *extensions: x509.ExtensionType) -> bytes:
        end, number = start + datetime.timedelta(days=days), x509.random_serial_number()
        builder = x509.CertificateBuilder(name("issuer"), name(subject), key.public_key(), number, start, end)
        for extension in (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), *extensions):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    signs = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **never)
    issues = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **never)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # one of those that the standard allows
    chain = certificate("signer", own, x509.BasicConstraints(False, None), signs, purpose)
    chain += certificate("issuer", issuer, x509.BasicConstraints(True, None), issues)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return chain, own.private_bytes(*form)


def _show(options: Namespace) -> None:
    pictures, valid = folders.list_inputs(options.images, notify=log), 0
    for picture in pictures:
        row: dict[str, Any] = {"input": str(picture.path), "state": None, "problems": []}
        try:
            found = read_credentials(picture.path)
        except FlowError as error:
            found, row["error"] = None, str(error)
        if found is not None:
            row |= {"state": found.state, "problems": [*found.problems], "manifest": found.manifest}
            valid += found.state != "Invalid"
        lines = [to_json(row)] if options.json else [printable(line) for line in _lines(row, found)]
        tqdm.write("\n".join(lines), file=sys.stdout)
    if valid < len(pictures):
        raise FlowError(f"Without valid content credentials: {len(pictures) - valid} of {len(pictures)}.")


def _lines(row: dict[str, Any], found: Credentials | None) -> list[str]:
    """Describe the credentials of a picture to a person; they are of strangers, and may lack anything."""
    if found is None:
        return [f"{row['input']}: {row.get('error', 'no content credentials')}"]
    manifest = found.manifest
    makers = [
        f"{maker.get('name')} {maker.get('version', '')}".strip() for maker in manifest.get("claim_generator_info", ())
    ]
    lines = [f"{row['input']}: {found.state.lower()} ({', '.join(found.problems)})", f"  made with {', '.join(makers)}"]
    lines.append(f"  signed by {manifest.get('signature_info', {}).get('issuer', 'nobody')}")
    for assertion in manifest.get("assertions", ()):
        if str(assertion.get("label")).startswith("c2pa.actions"):
            for action in assertion.get("data", {}).get("actions", ()):
                kind = str(action.get("digitalSourceType", "")).rpartition("/")[2]
                lines.append("  " + " ".join(filter(None, [action.get("action"), kind, action.get("description")])))
    for source in manifest.get("ingredients", ()):
        results = source.get("validation_results", {}).get("activeManifest", {})
        codes = ", ".join(status.get("code", "") for status in results.get("failure", ()))
        state = f"its credentials: {codes or 'no problem'}" if results else source.get("description", "no credentials")
        lines.append(f"  source: {source.get('format')}, {state}")
    return lines
