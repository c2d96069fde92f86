"""The noise of a mark: standard-normal numbers from a secret phrase, the same on every machine and for all time.

No library decides about these numbers: the key is the first 128 bits of ``SHA-256("flowcore mark " + words)``, and
numpy's Philox (Philox4x64-10 with that key, read as two little-endian words; its counter starts at 1) makes 64 bits a
number, of which two, a and b, give two normal ones (Box and Muller):

    u = ((a >> 11) + 1) / 2^53      v = (b >> 11) / 2^53      r = sqrt(-2 log u)      r cos(2 pi v), r sin(2 pi v)

Logarithm, cosine and sine are series of products and sums, which IEEE 754 rounds the same everywhere, as it does not
those of libraries; the results are rounded once, to float32. A level begins with the next two numbers.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 4.
"""

import hashlib
import math
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FlowError

KEY_BYTES = 16
NUMBERS_AT_ONCE = 2**14  # even; they stay in the cache
LOG_SERIES = [1 / k for k in range(1, 20, 2)]  # log m = 2 s (1 + s^2/3 + s^4/5 + ...), s = (m - 1) / (m + 1)
COS_SERIES = [(-1) ** (k // 2) / math.factorial(k) for k in range(0, 17, 2)]
SIN_SERIES = [(-1) ** (k // 2) / math.factorial(k) for k in range(1, 18, 2)]

Floats = NDArray[np.float64]


def mark_key(phrase: str) -> bytes:
    """Derive the key of a mark's noise from its phrase, in which only words count, not case and spaces."""
    words = " ".join(unicodedata.normalize("NFKC", phrase).casefold().split())
    if not words:
        raise FlowError("A mark needs a phrase; got an empty one. Choose several words that nobody would guess.")
    return hashlib.sha256(f"flowcore mark {words}".encode()).digest()[:KEY_BYTES]


def mark_noise(key: bytes, shapes: Sequence[tuple[int, ...]], check: Callable[[], None] = lambda: None) -> list[Tensor]:
    """Draw the noise of a mark: for every shape ``(C, H, W)`` a tensor ``(1, C, H, W)``, float32, on the CPU.

    ``check`` is called now and then; it may raise to cancel.
    """
    stream = raw_numbers(key)
    levels: list[Tensor] = []
    for shape in shapes:
        values = np.empty(math.prod(shape), np.float32)
        for start in range(0, len(values), NUMBERS_AT_ONCE):
            check()
            piece = values[start : start + NUMBERS_AT_ONCE]
            piece[:] = normal_numbers(stream.random_raw(len(piece) + len(piece) % 2))[: len(piece)]
        levels.append(torch.from_numpy(values).view(1, *shape))
    return levels


def raw_numbers(key: bytes) -> np.random.Philox:
    """Return the generator of a key, whose ``random_raw`` makes the 64-bit numbers."""
    return np.random.Philox(key=np.frombuffer(key, "<u8"))


def normal_numbers(raw: NDArray[np.uint64]) -> Floats:
    """Convert an even count of 64-bit numbers to as many standard-normal ones; see this module."""
    bits = (raw >> np.uint64(11)).astype(np.float64)
    u, v = (bits[0::2] + 1) / 2**53, bits[1::2] / 2**53
    quarter = np.floor(4 * v + 0.5)  # 0 to 4
    angle = 2 * math.pi * (v - quarter / 4)  # at most pi / 4 from 0
    square = angle * angle
    cosine, sine = _polynomial(COS_SERIES, square), angle * _polynomial(SIN_SERIES, square)
    odd = quarter % 2 == 1
    radius = np.sqrt(-2 * _log(u))
    radius[(quarter == 2) | (quarter == 3)] *= -1
    normal = np.empty(len(raw))
    normal[0::2] = radius * np.where(odd, -sine, cosine)
    normal[1::2] = radius * np.where(odd, cosine, sine)
    return normal


def _log(u: Floats) -> Floats:
    fraction, exponent = np.frexp(u)  # the fraction is in [1/2, 1)
    small = fraction < math.sqrt(0.5)
    fraction[small] *= 2
    s = (fraction - 1) / (fraction + 1)  # at most 0.172 from 0
    return (exponent - small) * math.log(2) + 2 * s * _polynomial(LOG_SERIES, s * s)


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    """Evaluate by Horner's rule, lowest power first; a product and a sum are rounded one after the other."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return total
