"""A picture as a file like the one that it was made of, for results that other programs have had in their hands."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..images.files import DEEP, DecodedImage, Format, encode
from ..images.metadata import losses
from ..images.rounding import to_uint8, truncate_16_bits
from ..provenance import KEY, fingerprint


def encode_like(
    original: DecodedImage | None,
    picture: Tensor,
    *,
    format: Format,
    bits: int | None,
    quality: int | None = None,
    text: dict[str, str],
    notify: Callable[[str], None],
) -> bytes:
    """Encode a picture ``(C, H, W)`` in [0, 1] with the metadata of the file that it was made of; gray if both are.

    ``bits`` None takes those of the original, where the format can hold them. Provenance in ``text``, for PNG, knows
    the picture as the host would store it, and the file afterward. ``notify`` is told what the file cannot hold.
    """
    actual = original.bits if original and format in DEEP else 8
    chosen = bits or actual
    if original and original.gray and len(picture) == 3 and bool((picture == picture[:1]).all()):
        picture = picture[:1]
    for loss in losses(original.metadata, len(picture), 0 if bits else original.bits, chosen) if original else ():
        notify(loss)
    if KEY in text:
        stored = truncate_16_bits(picture) if chosen == 16 else to_uint8(picture)
        text = {**text, KEY: text[KEY].replace(fingerprint(picture), fingerprint(stored))}
    metadata = original and original.metadata
    return encode(picture, metadata, format=format, bits=chosen, quality=quality, text=text)
