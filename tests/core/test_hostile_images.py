"""Images of any size, type, layout and content: a picture comes out, or a sentence."""

import math
import time

import pytest
import torch
from builders import build_tiny, build_upscaler
from cases import LONG, cases, tried
from hypothesis import given
from hypothesis import strategies as st

import flowcore
from flowcore import FlowError, Hints
from flowcore.images.resize import enlarge

pytestmark = pytest.mark.fuzz

SHORT, MANY = 15, 1000  # cases per task
PIXELS = 2**19 if LONG else 2**13  # of all images of a batch together
SECONDS = 60  # that a case may take at most, on a busy machine


FLOWS = {
    "srflow": build_upscaler(2, steps=1, hidden=4, encoder_blocks=1, stacked_blocks=(0,)),
    "colorizer": build_tiny("colorizer", perturb=0.05),
    "glow": build_tiny("glow", perturb=0.05, steps=1, hidden=4),
}

# --- images -----------------------------------------------------------------------------------------------------------

SIDES = st.one_of(st.integers(1, 48), st.sampled_from([1, 2, 3, 63, 64, 65, 127, 255, 257, 511, 1023, 4999, 5000]))
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8]
ODD_TYPES = [torch.int64, torch.int16, torch.bool, torch.complex64]
FILLS = ["noise", "flat", "dither", "huge", "tiny", "negative", "nan", "inf", "one nan", "one inf", "denormal"]
LAYOUTS = {
    "plain": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "as IMAGEs of the host": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "strided": lambda x: torch.stack([x, x], dim=-1).flatten(3)[..., ::2],
    "expanded": lambda x: x[:1].expand(len(x), -1, -1, -1) if len(x) else x,
    "inference": torch.inference_mode()(torch.clone),
    "gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
}


def filled(shape, fill, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator, dtype=torch.float64)
    if fill == "flat":
        image[:] = image.flatten()[0] if image.numel() else 0
    if fill == "dither" and image.numel():
        rows, columns = torch.arange(shape[2])[:, None], torch.arange(shape[3])
        image[:] = ((rows + columns) % 2).double()
    scales = {"huge": 1e30, "tiny": 1e-30, "negative": -1.0, "denormal": 1e-310}
    image *= scales.get(fill, 1.0)
    for word, value in (("nan", math.nan), ("inf", -math.inf if seed % 2 else math.inf)):
        if fill == word:
            image[:] = value
        if fill == f"one {word}" and image.numel():
            image.view(-1)[seed % image.numel()] = value
    return image


@st.composite
def images(draw):
    """An image, and whether it can be taken at all."""
    height, width = draw(SIDES), draw(SIDES)
    batch = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 8, 64]))
    channels = draw(st.sampled_from([1, 1, 2, 3, 3, 3, 4, 5]))
    while max(1, batch) * height * width > PIXELS:
        batch = max(1, batch // 8) if batch > 1 else batch
        if max(1, batch) * height * width > PIXELS:
            height, width = (max(1, height // 4), width) if height > width else (height, max(1, width // 4))
    if draw(st.integers(0, 19)) == 0:
        height = 0
    fill, layout = draw(st.sampled_from(FILLS)), draw(st.sampled_from([*LAYOUTS]))
    dtype = draw(st.sampled_from(TYPES + ODD_TYPES if draw(st.integers(0, 9)) == 0 else TYPES))
    image = filled((batch, channels, height, width), fill, draw(st.integers(0, 2**16)))
    if dtype in (torch.uint8, torch.int16, torch.int64):
        image = image.nan_to_num(0, 1, 0).clamp(0, 1) * 255
    return LAYOUTS[layout](image.to(dtype))


def outcome(kind, run, image, shape):
    """Run a task; what comes out is a picture of that shape, or a sentence, soon, and nothing was changed."""
    before = image.detach().clone()
    begun = time.monotonic()
    result, sentence = None, ""
    try:
        result = run(image)
    except FlowError as error:
        sentence = str(error)
    assert time.monotonic() - begun < SECONDS
    after = image.detach()
    assert ((after == before) | (after != after) & (before != before)).all()
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


def usable(image, channels=(1, 3, 4)):
    """Whether there is anything to object to; float16 infinities come of huge values, too."""
    if image.ndim != 4 or 0 in image.shape or image.shape[1] not in channels or image.dtype not in TYPES:
        return False
    return bool(image.detach().float().isfinite().all())


# --- tasks ------------------------------------------------------------------------------------------------------------


@cases(SHORT, MANY)
@given(image=images(), temperature=st.sampled_from([0.0, 0.8, 1.5, 40.0]), samples=st.integers(1, 3))
def test_upscale(image, temperature, samples):
    def run(image):
        return flowcore.upscale(FLOWS["srflow"], image, temperature=temperature, samples=samples)

    shape = (len(image) * samples, image.shape[1], 2 * image.shape[2], 2 * image.shape[3])
    result = outcome("upscale", run, image, shape)
    assert (result is not None) == usable(image)
    if result is not None and image.shape[1] == 4:
        alpha = image.detach()[:, 3:].float() / (255 if image.dtype == torch.uint8 else 1)
        assert (result[::samples, 3:] - enlarge(alpha.clamp(0, 1), 2).clamp(0, 1)).abs().max() < 1e-5


@cases(SHORT, MANY)
@given(
    image=images(), temperature=st.sampled_from([0.0, 0.9, 1.5, 40.0]), samples=st.integers(1, 3), hinted=st.booleans()
)
def test_colorize(image, temperature, samples, hinted):
    hints = Hints(palette=torch.tensor([[1.0, 0.1, -0.1, 0.0]])) if hinted else None

    def run(image):
        return flowcore.colorize(FLOWS["colorizer"], image, temperature=temperature, samples=samples, hints=hints)

    shape = (len(image) * samples, max(3, image.shape[1]), *image.shape[2:])
    result = outcome("colorize", run, image, shape)
    assert (result is not None) == usable(image)


@cases(SHORT, MANY)
@given(image=images())
def test_encode_and_decode(image):
    flow = FLOWS["glow"]

    def run(image):
        latents = flowcore.encode(flow, image)
        assert all(z.isfinite().all() for z in latents)
        again = flowcore.decode(flow, latents)
        assert again.isfinite().all()
        return again.clamp(0, 1)

    fits = usable(image, (3,)) and not (image.shape[2] % 4 or image.shape[3] % 4)
    result = outcome("encode", run, image, tuple(image.shape))
    if result is None and fits:
        assert image.detach().double().abs().max() > 1e3  # so far outside that there are no finite latents
    else:
        assert (result is not None) == fits
    if result is not None and float(image.detach().double().abs().max()) <= 1 and image.dtype != torch.uint8:
        assert (result - image.detach().float().clamp(0, 1)).abs().max() < 1e-2


@cases(SHORT, MANY)
@given(image=images(), samples=st.integers(1, 2))
def test_score(image, samples):
    flow = FLOWS["glow"]

    def run(image):
        found = flowcore.score(flow, image, samples=samples)
        assert tuple(found.map.shape) == (len(image), *image.shape[2:])
        assert found.bits_per_dim.isfinite().all()
        return torch.zeros(tuple(image.shape))

    if image.numel() and image.shape[1] != 3:
        image = image[:, :1].expand(-1, 3, -1, -1) if image.shape[1] != 4 else image[:, :3]
    result = outcome("score", run, image, tuple(image.shape))
    fits = usable(image, (3,)) and not (image.shape[2] % 4 or image.shape[3] % 4)
    if not fits:
        assert result is None


# --- the largest ------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(("height", "width"), [(5000, 1), (1, 5000), (5000, 5000)])
def test_the_longest_and_the_largest(height, width):
    image = torch.rand(1, 3, height, width)
    assert outcome_of_large(flowcore.colorize, FLOWS["colorizer"], image[:, :1]) == (1, 3, height, width)
    assert outcome_of_large(flowcore.upscale, FLOWS["srflow"], image) == (1, 3, 2 * height, 2 * width)
    assert outcome_of_large(flowcore.colorize, flowcore.load("color-photos"), image[:, :1]) == (1, 3, height, width)


def outcome_of_large(task, flow, image):
    result = task(flow, image)
    assert result.isfinite().all()
    tried("images of 5000 pixels a side")
    return tuple(result.shape)
