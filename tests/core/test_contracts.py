"""What holds of every public function that works on pictures, by the rows of `calls.py`."""

import inspect
import math
from typing import Literal, get_args, get_origin

import pytest
import torch
from PIL import Image
from small_flows import flow as small_flow

import flowcore
from flowcore.batch.provenance import read as read_provenance
from flowcore.engine.compiled import drop_compiled
from flowcore.engine.options import RunOptions, options_of
from flowcore.images import files
from flowcore.tasks.table import tasks

from .calls import CALLS, glow
from .commands import names, near, photograph, run

SLOW = {"find_faces", "remember"}  # seconds each time
every_call = pytest.mark.parametrize("name", CALLS)
runs = pytest.mark.parametrize("name", [name for name in CALLS if name != "apply_chroma"])  # which takes no options
of_pictures = pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.image is not None])


def quiet(_):
    """Take a note."""


def test_every_public_function_that_reports_is_a_row():
    public = (getattr(flowcore, name) for name in flowcore.__all__)
    functions = {each.__name__: inspect.signature(each) for each in public if inspect.isroutine(each)}
    assert {name for name, signature in functions.items() if "progress" in signature.parameters} <= CALLS.keys()


class Watch:
    """Follows a run, and cancels it at a question."""

    def __init__(self, patience=math.inf):
        self.patience, self.asked, self.reports = patience, 0, []

    def progress(self, done, total, preview=None):
        self.reports.append((done, total))

    def cancelled(self):
        self.asked += 1
        return self.asked > self.patience

    def run(self, name):
        return CALLS[name](progress=self.progress, cancelled=self.cancelled, notify=quiet)


@runs
def test_progress_rises_to_its_total_and_a_cancelled_run_stops_at_once(name):
    whole = Watch()
    whole.run(name)
    done, totals = zip(*whole.reports, strict=True)
    assert list(done) == sorted(done)
    assert {*totals} == {done[-1]}
    for patience in {0} if name in SLOW else {0, whole.asked // 2, whole.asked - 1}:
        stopped = Watch(patience)
        with pytest.raises(flowcore.Cancelled):
            stopped.run(name)
        assert stopped.asked == patience + 1
        assert stopped.reports == whole.reports[: len(stopped.reports)]


def spoilt(image):
    image = image[:1].clone()
    image[0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    return image


BAD = {  # a picture, and what an error must say of it
    "values that are no numbers": (spoilt, "2 values"),
    "none": (lambda x: x[:0], "empty"),
    "two channels": (lambda x: x[:, [0, 0]], "2, "),
    "five channels": (lambda x: x[:, [0] * 5], "5, "),
    "no batch": (lambda x: x[0], "Expected"),
    "no pixels": (lambda x: x[..., :0], "no pixels"),
    "on device meta": (lambda x: x.to("meta"), "holds no values"),
    "integers as floats": (lambda x: 255 * x, "look like [0, 255]"),
    "an array": (lambda x: x[0].permute(1, 2, 0).numpy(), "got numpy.ndarray. Make one: torch.from_numpy"),
    "an image of Pillow": (lambda x: Image.new("RGB", (8, 8)), "got PIL.Image. Make one: torch"),
    "the name of a file": (lambda x: "photo.jpg", "got builtins.str. Make one: flowcore.images.files.read"),
}


@of_pictures
def test_bad_pictures_are_refused_in_a_sentence(name):
    for kind, (spoil, said) in BAD.items():
        if (name, kind) == ("remember", "the name of a file"):
            continue  # which it reads
        with pytest.raises((flowcore.ImageError, flowcore.ShapeError)) as refused:
            CALLS[name](spoil(CALLS[name].image))
        message = str(refused.value)
        assert said in message, kind
        assert len(message) < 600, kind
        assert "\n" not in message, kind


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.make not in (None, glow)])
def test_what_is_no_flow_and_models_of_other_tasks_are_refused(name):
    for flow in (7, small_flow("small-digits") if name == "verify" else glow()):
        with pytest.raises(flowcore.FlowError):
            CALLS[name](flow=flow)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in SLOW])
def test_one_seed_is_one_picture_whatever_else_happens(name):
    call = CALLS[name]
    flow = call.make() if call.make else None
    held = [*(flow.state_dict().values() if flow else ()), *([] if call.image is None else [call.image])]
    before = [t.clone() for t in held]
    expected = call()
    torch.rand(3)
    state = torch.get_rng_state()
    drop_compiled()
    with torch.inference_mode():
        assert all(map(torch.equal, call(), expected))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, held, before))
    options = inspect.signature(call.task).parameters
    torch.set_num_threads(3)
    try:
        alone = call(batch=1) if "batch" in options else call()
    finally:
        torch.set_num_threads(1)
    for one, other in zip(alone, expected, strict=True):
        assert (one.double() - other.double()).abs().max() < 1e-4


def kinds(of=RunOptions):
    """The settings of all tasks."""
    return {of, *(each for kind in of.__subclasses__() for each in kinds(kind))}


NUMBERS = [
    (kind, option)
    for kind in sorted(kinds(), key=lambda kind: kind.__name__)
    for option in options_of(kind)
    if option.type in (int, float, int | None, float | None)
]


def test_every_number_takes_its_bounds_and_nothing_beyond_them():
    assert len(NUMBERS) > 100
    for kind, option in NUMBERS:
        whole, (low, high, is_open) = option.setting.kind is int, vars(option.setting.bounds).values()
        for good in (bound for bound in (low, None if is_open else high) if bound and math.isfinite(bound)):
            assert getattr(kind(**{option.name: good}), option.name) == good
        bad = [math.nextafter(low, -math.inf), math.nan, math.inf, True, "0.8", [low], *([low + 0.5] if whole else [])]
        for value in (*bad, high if is_open else math.nextafter(high, math.inf)):
            with pytest.raises(flowcore.FlowError, match=f"^{option.name} must "):
                kind(**{option.name: value})


def test_every_switch_and_choice_takes_what_there_is():
    for kind in kinds():
        for option in options_of(kind):
            if option.type is bool or get_origin(option.type) is Literal:
                for value in get_args(option.type) or (True, False):
                    assert getattr(kind(**{option.name: value}), option.name) == value
                for value in ("no choice", 1, None):
                    with pytest.raises(flowcore.FlowError, match=f"^{option.name} must be "):
                        kind(**{option.name: value})


MODEL_OF = {"colorize": "small-colorizer", "brighten": "night", "clean": "restorer"}
MODEL_OF |= {"shrink": "both-ways", "restore": "both-ways"}
GIVEN = {  # a value of every option that a command offers, other than its default
    **{"temperature": 0.5, "seed": 7, "tile": 32, "samples": 2, "mark": "a phrase", "boldness": 0.4, "calm_edges": 0.3},
    **{"calm_faces": 0.2, "guide_strength": 0.6, "factor": 2.0, "longest_side": 90, "match_source": True},
    **{"look": "crisp", "sharpness": 0.5, "precision": "bfloat16", "detail": 0.6, "coherence": 0.4, "saturation": 0.7},
    **{"working_size": 64, "gamut": "clip", "hint_steps": 3, "cast": 0.5, "vivid": 1.4, "skin": False, "exposure": 0.5},
    "strength": 0.7,
}
# A secret; and what stands for other options, whose numbers are stated, or gives way to another.
UNSTATED = {"mark", "boldness", "look", "factor"}


def whole(path):
    return files.read(path.read_bytes(), path.name).pixels


@pytest.mark.parametrize("name", [name for name in tasks() if name != "faces"])  # see test_command_line.py
def test_every_option_reaches_task_and_recipe_from_the_command_line(name, model_files, tmp_path):
    row, model = tasks()[name], model_files[MODEL_OF.get(name, "tiny")]
    photo, out = photograph(tmp_path / "a.png", (21, 17)), tmp_path / "out"
    offered = [option for option in options_of(row.settings) if option.setting.command]
    chosen = {option.name: GIVEN[option.name] for option in offered if option.name != "guide"}
    guide = photograph(tmp_path / "guide.png", (84, 68), seed=1)
    words, more = (["--guide", guide], {"guide": whole(guide)}) if name == "upscale" else ([], {})
    for key, value in chosen.items():
        flag = f"--{key.replace('_', '-')}"
        words += [f"--no-{key}" if value is False else flag, *([] if isinstance(value, bool) else [value])]
    assert run(name, photo, "-o", out, "--model", model, *words) == 0
    made = row.make(flowcore.load(model), whole(photo), photo.read_bytes(), {**chosen, **more, "notify": quiet})
    assert len(names(out)) == len(made)
    for path, picture in zip(names(out), made, strict=True):
        near(out / path, picture)
        entry = read_provenance(out / path)[-1]
        stated = entry.settings | {"seed": entry.seed, "samples": entry.samples, "temperature": entry.temperature}
        assert stated.items() >= {key: value for key, value in chosen.items() if key not in UNSTATED}.items()
        assert "a phrase" not in str(entry)


DRAWING = ("upscale", "upscale matched", "colorize", "colorize by hints", "brighten", "restore", "repair")


@pytest.mark.parametrize("name", DRAWING)
def test_sample_k_of_an_image_is_drawn_with_seed_plus_k_whatever_the_batch(name):
    image, seed = CALLS[name].image[:1].expand(2, -1, -1, -1).clone(), 2**64 - 8
    image[1] = image[1].flip(-1)
    (many,) = CALLS[name](image, seed=seed, samples=9)  # more than are drawn at once, and beyond the last seed
    assert len(many) == 18
    for item, number in ((0, 0), (0, 8), (1, 3)):
        (alone,) = CALLS[name](image[item : item + 1], seed=(seed + number) % 2**64, samples=1)
        assert (many[9 * item + number] - alone[0]).abs().max() < 1e-4
        assert (many[9 * item + 5] - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sample", "sample digits"])
def test_image_k_is_drawn_with_seed_plus_k_whatever_the_batch(name):
    (together,) = CALLS[name](n=5, seed=2**64 - 2)
    for given in ({"n": 5, "seed": 2**64 - 2, "batch": 2}, {"n": 3, "seed": 0}):
        (other,) = CALLS[name](**given)
        assert (together[-3:] - other[-3:]).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 1e-2
