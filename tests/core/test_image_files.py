"""Image files keep 16 bits, color profile, EXIF, XMP and resolution in every format that has them."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from builders import png, png_chunk, png_header
from PIL import Image, ImageCms, ImageFile, ImageOps

from flowcore import ImageError
from flowcore.images.files import Metadata, check_format, encode, is_whole, read, read_frames, unique_id
from flowcore.images.metadata import C2PA, lost_on_save, stated_bits
from flowcore.images.opening import open_image

FORMATS = [("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16), ("jpeg", 8), ("webp", 8)]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1"/>caf\xc3\xa9</x:xmpmeta>'
EXIF = {
    271: "Maker",
    306: "2020:01:01 00:00:00",
    0x8769: {0x9003: "2019:01:01 00:00:00", 0xA002: 5, 0xA003: 6, 0xA434: "a lens"},
    0x8825: {1: "N", 2: (1.0, 2.0, 3.0)},
}
METADATA = Metadata(EXIF, XMP, PROFILE, (300.0, 300.0))


def noise(channels, bits, height=13, width=17):
    levels = 2**bits - 1
    values = np.random.default_rng(0).integers(0, levels + 1, (channels, height, width))
    return torch.from_numpy(values.astype(np.float64) / levels).float()


@pytest.mark.parametrize(("format", "bits"), FORMATS)
def test_written_files_are_read_back(format, bits):
    for channels in (3,) if format == "jpeg" else (3, 4):
        picture = noise(channels, bits)
        data = encode(picture, METADATA, format=format, bits=bits, quality=100, unique_id="0a" * 16)
        image = read(data, "x")
        assert (image.pixels[0] - picture).abs().max() < (8 / 255 if format == "jpeg" else 0.01 / 65535)
        metadata = image.metadata
        assert (metadata.icc, metadata.xmp, unique_id(data)) == (PROFILE, XMP, "0a" * 16)
        assert metadata.dpi == pytest.approx((300, 300), rel=1e-4)
        assert metadata.exif[271] == "Maker"
        assert metadata.exif[0x8825][2] == (1.0, 2.0, 3.0)
        inner = metadata.exif[0x8769]
        assert inner[0xA434] == "a lens"
        assert (inner[0xA002], inner[0xA003]) == (17, 13)  # the size of the new image


def gray_tiff(bits, samples, white_is_zero=False, signed=False):
    """A row of four pixels of 12, 16 or 32 bits."""
    data = b"".join((value % 2**bits).to_bytes(-(-bits // 8), "little") for value in samples)
    if bits == 12:
        data = int("".join(f"{value:012b}" for value in samples), 2).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in {**tags, 339: 1 + signed}.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags) + 1) + entries + bytes(4)


def test_a_tiff_of_integers_of_unknown_range_is_refused():
    for bits, signed in ((32, False), (32, True), (16, True)):
        with pytest.raises(ImageError, match=f"it holds {'signed ' * signed}{bits}-bit integers of unknown range"):
            read(gray_tiff(bits, [0, 1000, 20000, 30000], signed=signed), "x")


def test_gray_tiffs_of_12_bits_and_with_white_as_zero_show_what_they_mean():
    expected = torch.tensor([0, 1 / 3, 2 / 3, 1])
    for data in (gray_tiff(12, [0, 1365, 2730, 4095]), gray_tiff(16, [65535, 43690, 21845, 0], white_is_zero=True)):
        assert torch.allclose(read(data, "x").pixels[0, 0, 0], expected, atol=1e-4)


def test_a_tiff_without_a_resolution_gets_none():
    for mode in ("RGB", "CMYK", "L"):
        file = io.BytesIO()
        Image.new(mode, (5, 4)).save(file, "TIFF")
        assert read(file.getvalue(), "x").metadata.dpi is None


@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "webp"])
def test_orientation_is_applied_and_reset(format):
    smooth = Image.fromarray((noise(3, 8, 3, 4).permute(1, 2, 0) * 255).byte().numpy()).resize((24, 16), 3)
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        xmp = {"xmp": XMP.replace(b'n="1"', f'n="{orientation}"'.encode())} if format in ("jpeg", "webp") else {}
        smooth.save(file, format, quality=95, exif=exif, **xmp)
        image = read(file.getvalue(), "x")
        with Image.open(file) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert torch.equal((image.pixels[0] * 255).byte(), torch.from_numpy(expected.copy()).permute(2, 0, 1))
        with Image.open(io.BytesIO(encode(image.pixels[0], image.metadata))) as opened:
            assert opened.getexif().get(0x0112, 1) == 1
            assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened)), expected)


def png16(samples, kind):
    """A minimal PNG of 16 bits with unfiltered rows."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, kind, rows)


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_is_read_in_16_bits(kind, channels, monkeypatch):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    expected = samples if channels > 2 else samples[:, :, [0, 0, 0, 1][: 3 + (channels == 2)]]
    for tile in (ImageFile._Tile, lambda *fields: fields):  # of Pillow now, and before 11
        monkeypatch.setattr(ImageFile, "_Tile", tile)
        pixels = read(png16(samples, kind), "x").pixels[0].permute(1, 2, 0).double()
        assert np.array_equal((pixels * 65535).round().numpy(), expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_is_read_in_16_bits(channels):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    for order, compressed in itertools.product("<>", (False, True)):
        strip = samples.astype(f"{order}u2").tobytes()
        strip = zlib.compress(strip) if compressed else strip
        tags = {256: 7, 257: 9, 258: (16,) * channels, 259: 8 if compressed else 1, 262: 2, 277: channels, 278: 9}
        tags |= {273: 0, 279: len(strip), 338: 2} if channels == 4 else {273: 0, 279: len(strip)}
        directory = Image.Exif()
        directory.endian = order
        for tag, value in tags.items():
            directory[tag] = value
        actual = read(directory.tobytes()[6:] + strip, "x").pixels[0].permute(1, 2, 0)
        assert np.array_equal((actual.double() * 65535).round().numpy(), samples)


def test_impossible_settings_raise_readable_errors():
    for settings, message in (
        ({"format": "gif"}, "png, jpeg, webp, tiff"),
        ({"format": "jpeg", "bits": 16}, "16 bits per channel go into PNG and TIFF"),
        ({"format": "jpeg", "alpha": True}, "alpha channel, which a JPEG"),
        ({"format": "webp", "quality": 101}, "1 to 100"),
        ({"format": "png", "bits": 12}, "8 or 16"),
    ):
        with pytest.raises(ImageError, match=message):
            check_format(**settings)
    with pytest.raises(ImageError, match="webp file cannot hold this image of 17000x1"):
        encode(torch.zeros(3, 1, 17000), format="webp")


def with_space(space):
    """A profile that says it is for another kind of device."""
    return PROFILE[:16] + space + PROFILE[20:]


def cmyk_profile():
    """A profile after which any ink darkens to gray: a table of 2x2x2x2 colors in Lab."""
    lightness = [255 - 60 * sum(inks) for inks in itertools.product((0, 1), repeat=4)]
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536 * (k % 4 == 0) for k in range(9)))
    table += bytes(range(256)) * 4 + b"".join(bytes((max(0, n), 128, 128)) for n in lightness) + bytes(range(256)) * 3
    body = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    names, illuminant = (b"prtr", b"CMYK", b"Lab ", b"acsp"), (63190, 65536, 54061)
    head = struct.pack(">I4xI4s4s4s12x4s28x3i48x", 128 + len(body), 0x02400000, *names, *illuminant)
    return head + body


def test_gray_profiles_stay_with_gray_pictures():
    file = io.BytesIO()
    Image.new("L", (4, 4), 90).save(file, "PNG", icc_profile=with_space(b"GRAY"))
    image = read(file.getvalue(), "x")
    assert (image.metadata.icc, image.notes) == (with_space(b"GRAY"), ())
    assert read(encode(image.pixels[0, :1], image.metadata), "x").metadata.icc == with_space(b"GRAY")
    assert read(encode(image.pixels[0], image.metadata), "x").metadata.icc is None  # in color


def test_cmyk_is_converted_by_its_profile():
    for options, shown, note in (
        ({"icc_profile": cmyk_profile()}, (196, 196, 196), "converted to sRGB by its color profile"),
        ({"icc_profile": b"nothing"}, (0, 255, 255), "approximate: it has no usable color profile"),
        ({}, (0, 255, 255), "approximate"),
    ):
        file = io.BytesIO()
        Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(file, "TIFF", **options)
        image = read(file.getvalue(), "x")
        assert (image.pixels[0, :, 0, 0] * 255).tolist() == pytest.approx(shown, abs=8)
        assert note in image.notes[0]
        assert image.metadata.icc is None


def test_lab_files_are_opaque_and_in_color():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    red = Image.new("RGB", (4, 4), (200, 40, 40))
    ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB").save(file := io.BytesIO(), "TIFF")
    image = read(file.getvalue(), "x")
    assert image.pixels.shape == (1, 3, 4, 4)
    assert not image.gray
    assert (image.pixels[0, :, 0, 0] * 255).tolist() == pytest.approx([200, 40, 40], abs=3)


def test_further_frames_are_named():
    for format in ("TIFF", "GIF", "WEBP", "PNG"):
        first, *others = [Image.new("RGB", (4, 4), (k, 90, 200)) for k in (10, 90, 170)]
        first.save(file := io.BytesIO(), format, save_all=True, append_images=others)
        image = read(file.getvalue(), "x")
        assert image.notes == ("It has 3 frames or pages; only the first is used.",)
        assert image.pixels[0, 0, 0, 0] * 255 == pytest.approx(10, abs=3)


def test_truncated_files_are_refused_where_other_programs_accept_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format in ("png", "jpeg", "tiff", "webp"):
        data = encode(noise(3, 8, 64, 64), format=format)
        assert is_whole(data)
        assert not is_whole(data[: len(data) * 3 // 4])
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("It was decoded."))
            assert format == "tiff" or is_whole(data)
        with pytest.raises(ImageError, match="Cannot read x as an image"):
            read(data[: len(data) * 3 // 4], "x")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_foreign_profiles_and_unwritable_tags_are_omitted():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", icc_profile=with_space(b"GRAY"))
    image = read(file.getvalue(), "x")
    assert image.metadata.icc is None
    assert image.notes == ("Its color profile, for GRAY, does not fit its pixels and is dropped.",)
    broken = Metadata({**EXIF, 305: object(), 0x8769: {**EXIF[0x8769], 0xA435: object()}})
    written, expected = (
        read(encode(noise(3, 8), metadata, unique_id="1b" * 16), "x").metadata.exif
        for metadata in (broken, Metadata(EXIF))
    )
    assert written == expected
    assert written[0x8769][0xA420] == "1b" * 16


def test_nothing_is_allocated_by_a_second_header():
    data = png16(np.zeros((1, 1, 3), np.uint16), 2)
    header = png_header(40_000, 60_000, 16, 2)  # 14.4 GB
    with pytest.raises(ImageError, match="exceeds limit"):
        read(data[:33] + header + data[33:], "photo.png")
    assert read(data[:-12] + header + data[-12:], "photo.png").pixels.shape == (1, 3, 1, 1)


def test_a_transparent_color_of_16_bits_is_an_alpha_channel():
    samples = np.random.default_rng(3).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    for kind, channels in ((0, 1), (2, 3)):
        colors = samples[:, :, :channels]
        head, tail = (part := png16(colors, kind))[: 8 + 25], part[8 + 25 :]
        key = colors[4, 2].astype(">u2").tobytes()
        data = head + png_chunk(b"tRNS", key) + tail
        pixels = read(data, "x").pixels[0].permute(1, 2, 0)
        assert np.array_equal((pixels[:, :, :3] * 65535).round().numpy(), np.broadcast_to(colors, (9, 7, 3)))
        assert pixels[:, :, 3].sum() == 9 * 7 - 1
        assert pixels[4, 2, 3] == 0


@pytest.mark.parametrize(("format", "bits"), [("png", 8), ("png", 16), ("tiff", 8), ("webp", 8)])
def test_gray_with_alpha_is_written_and_read(format, bits):
    picture = noise(2, bits)
    image = read(encode(picture, METADATA, format=format, bits=bits, quality=100), "x")
    assert image.gray or format == "webp"
    assert (image.pixels[0, [0, 1, 2, 3]] - picture[[0, 0, 0, 1]]).abs().max() < 0.01 / 65535


def test_exif_that_a_jpeg_cannot_hold_is_named_and_the_id_stays():
    inner = {0x927C: bytes(70_000), 0xA434: "a lens"}
    metadata = Metadata({271: "Maker", 0x8769: inner}, XMP + b" " * 70_000)
    data = encode(noise(3, 8), metadata, format="jpeg", unique_id="0a" * 16)
    assert unique_id(data) == "0a" * 16
    kept = read(data, "x").metadata
    assert kept.exif[0x8769][0xA434] == "a lens"
    assert (kept.exif[271], kept.xmp) == ("Maker", None)
    (note,) = lost_on_save(metadata, 3, 8, 8, "jpeg")
    assert note == "A JPEG file holds 65500 bytes of EXIF, and of XMP, so MakerNote, XMP is dropped."
    assert lost_on_save(metadata, 3, 8, 8, "png") == lost_on_save(METADATA, 3, 8, 8, "jpeg") == []


def test_dropped_content_credentials_are_named():
    note = "Its content credentials (C2PA) are not in results: they are signed for this very file."
    plain = encode(noise(3, 8))
    assert read(plain, "x").notes == ()
    box = b"\0\0\0\x28jumb\0\0\0\x20jumd" + C2PA + b"\3c2pa\0"
    signed = {
        "png": plain[:33] + png_chunk(b"caBX", box) + plain[33:],
        "jpeg": (jpeg := encode(noise(3, 8), format="jpeg"))[:2]
        + b"\xff\xeb"
        + struct.pack(">H", len(box) + 10)
        + b"JP\0\1\0\0\0\1"
        + box
        + jpeg[2:],
    }
    for data in signed.values():
        image = read(data, "x")
        assert image.notes == (note,)
        assert C2PA not in encode(image.pixels[0], image.metadata)


def test_bits_that_pillow_does_not_read_are_named():
    rows = np.random.default_rng(0).integers(0, 1024, (4, 5, 3)).astype(">u2").tobytes()
    assert read(b"P6\n# a comment\n5 4\n1023\n" + rows, "x").notes == (
        "It has 10 bits per channel, of which 8 are read.",
    )
    assert read(b"P6 5 4 255\n" + rows[:60], "x").notes == ()
    for format in {"AVIF", "JPEG2000"} & Image.SAVE.keys():
        Image.new("RGB", (8, 8)).save(file := io.BytesIO(), format)
        data = file.getvalue()
        assert read(data, "x").notes == ()
        with open_image(data) as opened:
            assert stated_bits(opened, data) == 8


def test_frames_that_exceed_the_screen_of_a_gif_are_refused():
    pixel = b"\x02\x02\x44\x01\x00"
    frames = [b"\x2c\0\0\0\0" + struct.pack("<HH", width, 1) + b"\0" + pixel for width in (1, 2)]
    data = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + bytes(6) + b"".join(frames) + b";"
    with pytest.raises(ImageError, match="Cannot read x as an image: its frames differ in size"):
        read_frames(data, "x")
