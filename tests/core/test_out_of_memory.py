"""Memory that runs out, anywhere: once, and the result is the same; for good, and the error names what to change.

A site is a line of flowcore and an operation of torch that makes a new tensor there. The allocator of a test refuses at
one site, or to make tensors beyond a size.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from cases import LONG, tried
from small_flows import flow
from torch.utils._python_dispatch import TorchDispatchMode

import flowcore
from flowcore.inference.plan import forget_plan
from flowcore.tasks import directions
from flowcore.tasks import sample as sampling
from flowcore.tasks.colorize import encode_colors
from flowcore.tasks.hints import hints_from_points
from flowcore.tasks.sample import reconstruct
from flowcore.tasks.score import score
from flowcore.tasks.transfer import content_transfer, style_transfer
from flowcore.tasks.video import colorize_video

pytestmark = pytest.mark.fuzz

PACKAGE = str(Path(flowcore.__file__).parent)
ONE = 1 / 255


class Allocator(TorchDispatchMode):
    """Refuses tensors: the n-th of a site, or all from there on, or all of the flow's beyond a number of bytes."""

    def __init__(self, site=None, number=1, *, for_good=False, most=0):
        super().__init__()
        self.site, self.number, self.for_good, self.most = site, number, for_good, most
        self.seen, self.refused, self.largest = Counter(), 0, 0  # the largest of the flow's

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        new = [t for t in _tensors(made) if t.untyped_storage().data_ptr() not in known]
        size = sum(t.untyped_storage().nbytes() for t in new)
        place = _place() if size else None
        if place is None:
            return made
        site = f"{place} {func.overloadpacket.__name__}"
        self.seen[site] += 1
        here = site == self.site and (self.seen[site] >= self.number if self.for_good else not self.refused)
        within = place.startswith(("plan.py", "folding.py", "transforms"))
        self.largest = max(self.largest, size if within else 0)
        if (here and self.seen[site] >= self.number) or (within and 0 < self.most < size):
            self.refused += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes. (A test.)")
        return made


def _tensors(made):
    return [t for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, torch.Tensor)]


def _place():
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


GREY, CLIP, COLOURS = noise(1, 1, 24, 32), noise(3, 1, 24, 32), noise(2, 3, 24, 32)
SMALL, LARGE, EDITED, DIGITS = noise(1, 3, 10, 12), noise(2, 3, 12, 16), noise(2, 3, 20, 24), noise(2, 1, 8, 12)
HINTS = hints_from_points([(5, 5, "#c04020"), (20, 9, "#2040c0")], (24, 32), radius=4)


def drawn(name, count=2):
    made = flow(name)
    return [noise(count, *shape, seed=k) for k, shape in enumerate(made.latent_shapes(*made.image_size))]


# Name to what runs, given where sentences go, and the arguments of which one must be named.
TASKS = {
    "upscale": (
        lambda say: flowcore.upscale(flow("small-srflow"), SMALL, samples=2, seed=3, notify=say),
        ("tile", "samples", "smaller image"),
    ),
    "colorize": (
        lambda say: flowcore.colorize(flow("small-color"), GREY, samples=2, temperature=0.5, notify=say),
        ("working_size", "samples"),
    ),
    "colorize with hints": (
        lambda say: flowcore.colorize(flow("small-color"), GREY, samples=2, hints=HINTS, hint_steps=2, notify=say),
        ("working_size", "samples"),
    ),
    "colorize a clip": (
        lambda say: colorize_video(flow("small-color"), CLIP, carry=0.5, notify=say),
        ("working_size",),
    ),
    "encode colours": (lambda say: encode_colors(flow("small-color"), COLOURS), ("working_size",)),
    "sample": (lambda say: flowcore.sample(flow("small-glow"), 3, notify=say), ("size", "samples")),
    "sample digits": (
        lambda say: flowcore.sample(flow("small-digits"), 3, labels=1, styles={"bold": 1.0}, snapped=True, notify=say),
        ("size", "samples"),
    ),
    "encode": (lambda say: flowcore.encode(flow("small-glow"), LARGE, notify=say), ("size",)),
    "decode": (lambda say: flowcore.decode(flow("small-glow"), drawn("small-glow"), notify=say), ("size",)),
    "reconstruct": (lambda say: reconstruct(flow("small-glow"), LARGE), ("size",)),
    "style transfer": (lambda say: style_transfer(flow("small-digits"), DIGITS, 0, [1, 2]), ("size",)),
    "content transfer": (
        lambda say: content_transfer(flow("small-srflow"), EDITED, SMALL),
        ("size",),
    ),
    "score": (lambda say: score(flow("small-glow"), LARGE, samples=2, notify=say), ("samples", "smaller")),
}


SILENT = {"encode colours", "reconstruct", "style transfer", "content transfer"}


def run(task, say=lambda _: None):
    """A result as tensors, from a state in which nothing is kept."""
    forget_plan()
    made = TASKS[task][0](say)
    if isinstance(made, flowcore.Score):
        return [made.bits_per_dim, made.map, made.per_level]
    return list(made) if isinstance(made, (tuple, list)) else [made]


def close(made, known, within=ONE):
    assert len(made) == len(known)
    for one, other in zip(made, known, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= within


@pytest.fixture(params=list(TASKS))
def task(request, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # in a process of many tests it takes a while
    return request.param


def sites(task, most):
    """Sites of a task, how often each allocates, and what comes of it; in the short form, some of them."""
    known = run(task)
    with Allocator() as allocator:
        run(task)
    found = list(allocator.seen.items())
    assert len(found) > 20
    return (found if LONG else found[:: max(1, len(found) // most)]), known


def test_memory_that_runs_out_once_changes_nothing_but_a_sentence(task):
    found, known = sites(task, 9)
    silent = []
    for site, count in found:
        for number in {1, count} if LONG else {count}:
            said = []
            with Allocator(site, number) as refusing:
                made = run(task, said.append)
            assert refusing.refused == 1, site
            close(made, known)
            silent += [] if said else [site]
            tried("allocations refused once")
    # What cannot be told logs it.
    assert not silent or task in SILENT


def test_memory_that_runs_out_for_good_is_a_sentence_that_names_what_to_change(task):
    found, known = sites(task, 6)
    words = TASKS[task][1]
    for site, _ in found:
        with Allocator(site, for_good=True) as refusing:
            try:
                made = run(task)
            except flowcore.FlowError as error:
                text = str(error)
            else:
                text = ""
                close(made, known)  # there was another way
        assert refusing.refused
        assert not text or ("out of memory" in text.lower() and all(word in text for word in words)), f"{site}: {text}"
        tried("allocations refused for good")


@pytest.mark.parametrize("name", ["colorize", "sample", "encode", "decode", "score"])
def test_what_does_not_fit_together_fits_one_by_one(name):
    """Two images never fit into this device, and one just does."""
    glow, color = flow("small-glow"), flow("small-color")
    calls = {
        "colorize": lambda n, say: flowcore.colorize(color, GREY, samples=n, notify=say),
        "sample": lambda n, say: flowcore.sample(glow, n, notify=say),
        "encode": lambda n, say: flowcore.encode(glow, LARGE[:1].expand(n, -1, -1, -1), notify=say)[0],
        "decode": lambda n, say: flowcore.decode(glow, drawn("small-glow", n), notify=say),
        "score": lambda n, say: score(glow, LARGE[:1].expand(n, -1, -1, -1), complexity=False, notify=say).map,
    }
    known, said = calls[name](8, print), []
    with Allocator() as one:
        calls[name](1, print)
    with Allocator(most=one.largest) as short:
        made = calls[name](8, said.append)
    assert short.refused
    assert said
    close([made], [known], 1e-5)


@pytest.mark.parametrize("name", ["sample", "encode", "decode", "reconstruct", "colorize", "score"])
def test_what_runs_out_of_memory_in_the_end_comes_once(name):
    """Where a finished image is shown, such as in a caller's preview."""
    glow = flow("small-glow")
    calls = {
        "sample": lambda show: flowcore.sample(glow, 4, batch=2, progress=show),
        "encode": lambda show: flowcore.encode(glow, LARGE, batch=2, progress=show)[0],
        "decode": lambda show: flowcore.decode(glow, drawn("small-glow", 4), batch=2, progress=show),
        "reconstruct": lambda show: reconstruct(glow, LARGE, batch=2, progress=show)[0],
        "colorize": lambda show: flowcore.colorize(flow("small-color"), GREY, samples=3, progress=show),
        "score": lambda show: score(glow, LARGE, batch=2, progress=show).map,
    }
    shown = []
    known = calls[name](lambda *_: shown.append(1))
    for moment in range(len(shown) - 4, len(shown)):
        refused = []

        def show(*_, moment=moment, refused=refused):
            if len(refused) == moment:
                refused.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory. (A test: where a picture is shown.)")
            refused.append(1)

        close([calls[name](show)], [known], 1e-5)
        assert len(refused) > moment + 1


def test_files_that_cannot_be_read_for_lack_of_memory_are_not_skipped(tmp_path, monkeypatch):
    from PIL import Image

    for side in ("with", "without"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (16, 12), "red" if side == "with" else "blue").save(tmp_path / side / "a.png")

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(directions, "_read", short)
    with pytest.raises(flowcore.FlowError, match=r"Out of memory.*size"):
        directions.attribute_direction_from_folders(flow("small-glow"), tmp_path / "with", tmp_path / "without")


def test_other_errors_pass_as_they_are(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(sampling, "sample_latents", broken)
    with pytest.raises(RuntimeError, match="something else"):
        flowcore.sample(flow("small-glow"), 1)
