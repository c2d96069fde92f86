"""Images of any size, type, layout and content: a picture comes out, or a sentence."""

import math
import time
from functools import partial

import pytest
import torch
from builders import build_tiny, build_upscaler
from cases import LONG, cases, tried
from hypothesis import given
from hypothesis import strategies as st

import flowcore
from flowcore import FlowError, Hints
from flowcore.images.resize import enlarge

from .colorings import luma_error

pytestmark = pytest.mark.fuzz

PIXELS = 2**19 if LONG else 2**13  # of all images of a batch together
SECONDS = 600 if LONG else 60  # that a case may take at most, on a busy machine
UPSCALER = build_upscaler(2, steps=1, hidden=4, encoder_blocks=1, stacked_blocks=(0,))
COLORIZER = build_tiny("colorizer", perturb=0.05)
GLOW = build_tiny("glow", perturb=0.05, steps=1, hidden=4)

SIDES = st.one_of(st.integers(1, 48), st.sampled_from([1, 2, 3, 63, 64, 65, 127, 255, 257, 511, 1023, 4999, 5000]))
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8]
ODD_TYPES = [torch.int64, torch.int16, torch.bool, torch.complex64]
FILLS = {  # of noise in [0, 1]
    "noise": lambda x: x,
    "flat": lambda x: torch.full_like(x, 0.4),
    "dither": lambda x: (
        (torch.arange(x.shape[2])[:, None] + torch.arange(x.shape[3])).remainder(2).expand_as(x).double()
    ),
    **{
        str(scale): partial(torch.mul, other=scale)
        for scale in (1e30, 1e-30, -1.0, 1e-310, math.nan, math.inf, -math.inf)
    },
    **{f"one {value}": lambda x, v=value: x.index_fill(3, torch.tensor([0]), v) for value in (math.nan, math.inf)},
}


@st.composite
def images(draw):
    """An image, which most tasks can take."""
    height, width = draw(SIDES), draw(SIDES)
    batch = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 8, 64]))
    while max(1, batch) * height * width > PIXELS:
        if batch > 1:
            batch //= 8
        else:
            height, width = (max(1, height // 4), width) if height > width else (height, max(1, width // 4))
    height *= draw(st.integers(0, 19)) > 0
    shape = (batch, draw(st.sampled_from([1, 1, 2, 3, 3, 3, 4, 5])), height, width)
    dtype = draw(st.sampled_from(TYPES + ODD_TYPES if draw(st.integers(0, 9)) == 0 else TYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    image = FILLS[draw(st.sampled_from([*FILLS]))](torch.rand(shape, generator=generator, dtype=torch.float64))
    if dtype in (torch.uint8, torch.int16, torch.int64):
        image = image.nan_to_num(0, 1, 0).clamp(0, 1) * 255
    return image.to(dtype)


def usable(image, channels=(1, 3, 4), multiple=1):
    """Whether there is nothing to object to; float16 infinities come of huge values, too."""
    if 0 in image.shape or image.shape[1] not in channels or image.dtype not in TYPES:
        return False
    return bool(image.float().isfinite().all()) and not any(side % multiple for side in image.shape[2:])


def outcome(kind, run, image, shape, expected=None):
    """Run a task: soon there is a picture of that shape, or a sentence, and nothing was changed."""
    before, begun = image.clone(), time.monotonic()
    result, sentence = None, ""
    try:
        result = run(image)
    except FlowError as error:
        sentence = str(error)
    assert time.monotonic() - begun < SECONDS
    assert ((image == before) | (image != image) & (before != before)).all()
    assert expected is None or (result is not None) == expected
    if result is None:
        assert 20 < len(sentence) < 600
        assert any(word in sentence for word in ("got", "holds", "empty", "no finite"))
    else:
        assert tuple(result.shape) == shape
        assert result.dtype == torch.float32
        assert not result.requires_grad
        assert result.isfinite().all()
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
    tried(f"images ({kind})")
    return result


fuzz = cases(15, 1000)
TEMPERATURES, PALETTE = st.sampled_from([0.0, 0.8, 1.5, 40.0]), torch.tensor([[1.0, 0.1, -0.1, 0.0]])


@fuzz
@given(image=images(), temperature=TEMPERATURES, samples=st.integers(1, 3))
def test_upscale(image, temperature, samples):
    shape = (len(image) * samples, image.shape[1], 2 * image.shape[2], 2 * image.shape[3])
    task = partial(flowcore.upscale, UPSCALER, temperature=temperature, samples=samples)
    result = outcome("upscale", task, image, shape, usable(image))
    if result is not None and image.shape[1] == 4:
        alpha = image[:, 3:].float() / (255 if image.dtype == torch.uint8 else 1)
        assert (result[::samples, 3:] - enlarge(alpha.clamp(0, 1), 2).clamp(0, 1)).abs().max() < 1e-5


@fuzz
@given(image=images(), temperature=TEMPERATURES, samples=st.integers(1, 3), hinted=st.booleans())
def test_colorize(image, temperature, samples, hinted):
    shape = (len(image) * samples, max(3, image.shape[1]), *image.shape[2:])
    options = {"temperature": temperature, "samples": samples, "hints": Hints(palette=PALETTE) if hinted else None}
    result = outcome("colorize", partial(flowcore.colorize, COLORIZER, **options), image, shape, usable(image))
    if result is not None and image.dtype == torch.float32 and 0 <= image[:, :3].min() <= image[:, :3].max() <= 1:
        assert luma_error(result, image) <= 1e-5


@fuzz
@given(image=images())
def test_encode_and_decode(image):
    def run(image):
        again = flowcore.decode(GLOW, flowcore.encode(GLOW, image))
        assert again.isfinite().all()
        return again.clamp(0, 1)

    result, fits = outcome("encode", run, image, tuple(image.shape)), usable(image, (3,), 4)
    # Far outside of [0, 1] there are no finite latents.
    assert (result is not None) == fits or (fits and image.double().abs().max() > 1e3)


@fuzz
@given(image=images(), samples=st.integers(1, 2))
def test_score(image, samples):
    def run(image):
        found = flowcore.score(GLOW, image, samples=samples)
        assert found.bits_per_dim.isfinite().all()
        return found.map.float().clamp(0, 1)

    shape = (len(image), *image.shape[2:])
    outcome("score", run, image, shape, None if usable(image, (1, 3, 4), 4) else False)


@pytest.mark.soak
@pytest.mark.parametrize(("height", "width"), [(5000, 1), (1, 5000), (5000, 5000)])
def test_the_longest_and_the_largest(height, width):
    image = torch.rand(1, 3, height, width)
    for flow in (COLORIZER, flowcore.load("color-photos")):
        outcome("5000 a side", partial(flowcore.colorize, flow), image[:, :1], tuple(image.shape), True)
    outcome("5000 a side", partial(flowcore.upscale, UPSCALER), image, (1, 3, 2 * height, 2 * width), True)
