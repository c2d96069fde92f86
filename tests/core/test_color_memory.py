"""A memory of colors: what is found in it, how a colorizer follows it, and its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowcore
from flowcore import CheckpointError, ColorMemory, FlowError, Hints, ImageError, colorize, encode_colors, remember, save
from flowcore.images import color
from flowcore.models import build, configure
from flowcore.models.colorizer.color_index import COMPONENTS, WIDTH, CellMemory, _topk
from flowcore.models.colorizer.color_memory import KEY, starter_memory
from flowcore.tasks.colorize import change_cast, make_vivid
from flowcore.tasks.hints import palette_from

from .commands import run

SEEING = {"backbone": "efficientnet-lite0", "predicts_chroma": True, "residual": True, "smooth": True}
THREE = {"steps": (1, 1, 1), "hidden": (4, 4, 4), "widths": (4, 4, 4, 8), "merged": 8, "features": 2}


def seeing(seed=4, **fields):
    """A colorizer with a backbone of random weights."""
    torch.manual_seed(seed)
    flow = build("colorizer", configure("colorizer", {**THREE, **SEEING, "working_size": 64, **fields}))
    for parameter in flow.encoder.backbone.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    return flow.eval()


def cells(count=70, seed=1, photographs=7):
    generator = torch.Generator().manual_seed(seed)
    described = torch.randn(count, WIDTH, generator=generator)
    chroma = torch.rand(count, 2, generator=generator) - 0.5
    return described, chroma, torch.arange(count) % photographs


def filled(count=70, seed=1):
    memory = CellMemory(count)
    memory.fill(*cells(count, seed))
    return memory


def photograph(seed=0, height=64, width=96):
    """A calm blue left half, and a rough orange right one."""
    grain = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5
    right = (torch.arange(width) >= width // 2).float()
    blue, orange = (torch.tensor(c).view(1, 2, 1, 1) for c in ([0.1, -0.08], [-0.1, 0.12]))
    y = 0.5 + (0.02 + 0.3 * right) * grain
    return color.compress(y, (1 - right) * blue + right * orange + torch.zeros(1, 2, height, width))


@pytest.fixture(scope="module")
def flow():
    return seeing()


@pytest.fixture(scope="module")
def album(flow):
    return remember(flow, photograph())


def test_a_place_finds_itself_with_its_color():
    memory, (described, chroma, _) = filled(), cells()
    found = memory.look_up(described.T.reshape(1, WIDTH, 7, 10), neighbors=1)
    assert torch.allclose(found[0, :2].flatten(1).T, chroma, atol=0.6 / 255)
    assert found[0, 2:4].abs().max() == 0  # a single neighbor is not spread
    assert found[0, 4].min() > 0.99


def test_the_largest_are_found_among_chunks_and_what_is_left():
    values = torch.randn(3, 1000, generator=torch.Generator().manual_seed(2))
    values[:, -1] = 9  # in the last chunk, which is not whole
    best, places = _topk(values, 5)
    assert torch.equal(best, values.topk(5).values)
    assert torch.equal(values.gather(1, places), best)


def test_a_part_depends_on_its_seed_and_holds_its_share_of_the_photographs():
    memory = filled()
    parts = [memory.random_photographs(seed, 3 / 7) for seed in range(6)]
    numbers = memory.get_buffer("photograph")
    assert [len(numbers[part].unique()) for part in parts] == [3] * 6
    assert len({tuple(part.tolist()) for part in parts}) > 1
    assert torch.equal(parts[2], memory.random_photographs(2, 3 / 7))


def test_a_coloring_follows_an_album_and_keeps_its_luma(flow, album):
    y = color.luma(photograph())
    one, plain = (colorize(flow, y, temperature=0, memory=given) for given in (album, None))
    truth = color.split(photograph())[1]
    error, before = ((color.split(picture)[1] - truth).square().mean() for picture in (one, plain))
    assert error < 0.6 * before
    assert (color.luma(one) - y).abs().max() < 1e-6


def test_every_seed_follows_another_half_of_an_album(flow):
    y, chroma = color.split(photograph())
    album = remember(flow, [color.compress(y, chroma), color.compress(y, -chroma)])
    drawn = [
        color.split(colorize(flow, y, seed=seed, temperature=1e-9, detail=0, memory=album))[1] for seed in range(6)
    ]
    likeness = [float((one * chroma).sum()) for one in drawn]
    assert min(likeness) < 0 < max(likeness)


def test_photographs_of_any_size_make_an_album_of_as_many_cells_as_asked_for(flow):
    pictures = [photograph(1, 40, 33), photograph(2, 300, 16), torch.cat([photograph(3)] * 2)]
    assert remember(flow, pictures).photographs == 4
    memory = remember(flow, [photograph(seed) for seed in range(5)], cells=3)
    assert (memory.places.cells, memory.photographs) == (3, 3)


def test_a_folder_makes_an_album_of_its_photographs_in_color(flow, tmp_path):
    notes = []
    for name, picture in (("a.png", photograph()), ("b.png", color.luma(photograph()).expand(-1, 3, -1, -1))):
        (tmp_path / name).write_bytes(flowcore.tasks.remember.files.encode(picture[0], None))
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert remember(flow, tmp_path, notify=notes.append).photographs == 1
    assert any("1 of 3 photographs have no colors to remember: b.png" in note for note in notes)
    assert any("Skipped c.png" in note for note in notes)


def test_albums_without_colors_and_models_without_a_backbone_are_refused(flow):
    y, tint = color.luma(photograph()), torch.tensor([-0.05, 0.04]).view(1, 2, 1, 1).expand(1, 2, 64, 96)
    for photographs, word in ((y, "gray"), (color.compress(y, tint), "tint"), ([], "none"), ("/no/album", "/no/album")):
        with pytest.raises(ImageError, match=word):
            remember(flow, photographs)
    with pytest.raises(FlowError, match="backbone"):
        remember(build("colorizer", configure("colorizer", THREE)), photograph())


def test_an_album_of_another_backbone_is_refused(album):
    with pytest.raises(FlowError, match="another"):
        colorize(seeing(seed=5), photograph(), memory=album)
    with pytest.raises(FlowError, match="different"):
        album.merge(remember(seeing(seed=5), photograph()))


def test_two_albums_together_find_the_places_of_both(flow, album):
    other = remember(flow, photograph(seed=8))
    both = album.merge(other)
    assert both.photographs == 2
    assert both.places.cells == album.places.cells + other.places.cells
    with torch.no_grad():
        described = flow.encoder.describe(color.luma(photograph(seed=8, height=192, width=288)))
    assert torch.allclose(both.places.look_up(described), both.places.look_up(described, both.places.all_cells()))
    noted = ColorMemory(album.places, album.backbone, {"licence": "CC0"})
    assert noted.merge(album).merge(noted).provenance == {"merged": [{"licence": "CC0"}, {}]}  # each once


def test_joined_albums_stay_within_what_a_file_holds(flow, album, tmp_path, monkeypatch):
    for module in ("color_index", "color_memory"):
        monkeypatch.setattr(f"flowcore.models.colorizer.{module}.MAX_CELLS", 250, raising=False)
    album.merge(remember(flow, photograph(seed=8))).save(tmp_path / "album.safetensors")
    both = ColorMemory.load(tmp_path / "album.safetensors")
    assert both.places.cells == 250
    assert both.places.get_buffer("photograph").bincount().tolist() == [125, 125]


def test_a_file_is_replaced_only_by_one_that_can_be_read(album, tmp_path):
    album.save(path := tmp_path / "album.safetensors")
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        ColorMemory(album.places, album.backbone, {"licence": "x" * 2**22}).save(path)
    assert path.read_bytes() == before


def test_remember_replaces_only_a_memory_and_only_with_again(flow, tmp_path, capsys):
    model, album, foreign = (tmp_path / f"{name}.safetensors" for name in ("model", "album", "foreign"))
    save(flow, model)
    save_file({"x": torch.zeros(1)}, foreign)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(flowcore.tasks.remember.files.encode(photograph()[0], None))
    before = {path: path.read_bytes() for path in (tmp_path / "b.png", foreign, model)}

    def remembered(out, *words):
        return run("remember", tmp_path / "a.png", out, "--model", model, *words)

    for path in before:
        assert remembered(path, "--again") == 2
    assert {path: path.read_bytes() for path in before} == before
    assert "b.png. Name the output last." in capsys.readouterr().err
    assert [remembered(album), remembered(album), remembered(album, "--again")] == [0, 2, 0]
    assert remembered(album, "--add-to", album) == 0
    assert ColorMemory.load(album).photographs == 2


def damaged(change):
    def write(path):
        tensors = load_file(path)
        with flowcore.models.model_file.open_safetensors(path, "") as file:
            header = json.loads(file.metadata()[KEY])
        change(tensors, header)
        save_file(tensors, path, {KEY: json.dumps(header)})

    return write


DAMAGES = [
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated"),
    (lambda path: save_file({"x": torch.zeros(2)}, path), "another kind"),
    (damaged(lambda tensors, header: tensors.pop("scale")), "scale is missing"),
    (damaged(lambda tensors, header: tensors["scale"].fill_(torch.nan)), "not finite"),
    (damaged(lambda tensors, header: tensors["photograph"].fill_(9)), "photographs wrongly"),
    (damaged(lambda tensors, header: header.update(format=9)), "newer flowcore"),
    (damaged(lambda tensors, header: header.pop("backbone")), "backbone"),
    (damaged(lambda tensors, header: header.update(share=0)), "share"),
    (damaged(lambda tensors, header: header.update(neighbors=0)), "neighbors"),
    (damaged(lambda tensors, header: tensors.update(keys=torch.zeros(0, COMPONENTS))), "0 places"),
    (damaged(lambda tensors, header: tensors.update(keys=tensors["keys"].float())), "type F32"),
]


def test_a_damaged_file_is_refused_with_a_sentence(album, tmp_path):
    for damage, sentence in DAMAGES:
        album.save(tmp_path / "album.safetensors")
        damage(tmp_path / "album.safetensors")
        with pytest.raises(CheckpointError, match=sentence):
            ColorMemory.load(tmp_path / "album.safetensors")


def test_an_album_comes_back_from_its_file_with_how_it_is_looked_up(flow, album, tmp_path):
    how = {"share": 1.0, "neighbors": 3, "strength": 0.0, "weight": 0.01}
    faint = ColorMemory(album.places, album.backbone, {"licence": "CC0"}, **how)
    faint.save(tmp_path / "faint.safetensors")
    again = ColorMemory.load(tmp_path / "faint.safetensors")
    assert (again.backbone, again.provenance) == (album.backbone, {"licence": "CC0"})
    assert {name: getattr(again, name) for name in how} == how
    assert again.fingerprint == faint.fingerprint != album.fingerprint
    y = color.luma(photograph())
    assert torch.equal(colorize(flow, y, memory=again), colorize(flow, y, memory=None))


def test_another_default_type_blames_no_file(tmp_path):
    places = CellMemory(40)
    places.get_buffer("photograph").copy_(torch.arange(40))
    memory = ColorMemory(places, "backbone")
    memory.save(tmp_path / "memory.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        again = ColorMemory.load(tmp_path / "memory.safetensors")
        chosen = again.places.random_photographs(7, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.fingerprint == memory.fingerprint
    assert torch.equal(chosen, places.random_photographs(7, 0.5))


def test_colors_of_much_weight_are_met_place_by_place(flow, album):
    def error(weight):
        memory = ColorMemory(album.places, album.backbone, weight=weight)
        chroma = color.split(colorize(flow, color.luma(photograph()), temperature=0, memory=memory))[1]
        return float((chroma - color.split(photograph())[1]).square().mean())

    assert error(1.0) < error(0.03) < error(0.0003)


def test_the_shipped_colorizer_uses_its_starter_memory_by_default():
    shipped, y = flowcore.load("color-photos"), color.luma(photograph())
    starter = starter_memory(shipped)
    usual, none, explicit = (colorize(shipped, y, **given) for given in ({}, {"memory": None}, {"memory": starter}))
    assert torch.equal(usual, explicit)
    assert not torch.equal(usual, none)
    assert starter_memory(flowcore.load("color-photos")) is starter
    assert starter_memory(seeing(starter_memory=True)) is None  # of another backbone
    # who gives a palette or latents has said which colors are wanted
    palette = Hints(palette=palette_from(["#a06040"]))
    assert torch.equal(colorize(shipped, y, hints=palette), colorize(shipped, y, hints=palette, memory=None))
    latents = encode_colors(shipped, photograph())
    drawn = [colorize(shipped, y, latents=latents, **given) for given in ({}, {"memory": None})]
    assert torch.equal(*drawn)


def test_where_a_memory_shows_nothing_similar_the_starter_memory_stays():
    shipped, y = flowcore.load("color-photos"), color.luma(photograph())
    alike = remember(shipped, photograph())
    unlike = ColorMemory(CellMemory(2), alike.backbone)
    unlike.places.fill(-torch.ones(2, WIDTH), torch.full((2, 2), 0.3), torch.zeros(2), alike.places)
    usual = colorize(shipped, y, seed=3)
    assert torch.allclose(colorize(shipped, y, seed=3, memory=unlike), usual, atol=1e-6)
    assert not torch.allclose(colorize(shipped, y, seed=3, memory=alike), usual, atol=0.05)


def test_a_cast_becomes_that_of_the_calm_coloring_or_none():
    y = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    drawn, calm = (0.2 * torch.randn(n, 2, 6, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 1))
    weight = y * (1 - y)

    def mean(chroma):
        return (weight * chroma).sum((2, 3)) / weight.sum()

    assert torch.allclose(change_cast(drawn, calm, y, 1), drawn, atol=1e-6)
    assert torch.allclose(mean(change_cast(drawn, calm, y, 0)), mean(calm).expand(3, -1), atol=1e-6)
    assert mean(change_cast(drawn, calm, y, -1)).abs().max() < 1e-6
    black = torch.zeros_like(y)
    assert torch.equal(change_cast(drawn, calm, black, -1), drawn)


def test_vivid_moves_colors_away_from_their_mean(flow):
    y = torch.full((1, 1, 4, 4), 0.5)
    chroma = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    mean = chroma.mean((2, 3), keepdim=True)
    assert torch.allclose(make_vivid(chroma, y, 1.3) - mean, 1.3 * (chroma - mean), atol=1e-6)
    assert torch.equal(colorize(flow, photograph(), seed=1, cast=1.0, vivid=1.0), colorize(flow, photograph(), seed=1))
