"""Picture files: 16 bits, orientation, colour profile, EXIF, XMP and dpi survive, in every format that has them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from flowcore.errors import ImageError
from flowcore.images.files import Kept, check_format, encode, read, unique_id

FORMATS = [("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16), ("jpeg", 8), ("webp", 8)]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1"/>caf\xc3\xa9</x:xmpmeta>'
EXIF = {
    271: "Maker",
    306: "2020:01:01 00:00:00",
    0x8769: {0x9003: "2019:01:01 00:00:00", 0xA002: 5, 0xA003: 6, 0xA434: "a lens"},
    0x8825: {1: "N", 2: (1.0, 2.0, 3.0)},
}
KEPT = Kept(EXIF, XMP, PROFILE, (300.0, 300.0))


def noise(channels, bits, height=13, width=17):
    levels = 2**bits - 1
    values = np.random.default_rng(0).integers(0, levels + 1, (channels, height, width))
    return torch.from_numpy(values.astype(np.float64) / levels).float()


@pytest.mark.parametrize(("format", "bits"), FORMATS)
@pytest.mark.parametrize("channels", [3, 4])
def test_what_is_written_is_read(format, bits, channels):
    if format == "jpeg" and channels == 4:
        pytest.skip("a JPEG has no alpha")
    picture = noise(channels, bits)
    data = encode(picture, KEPT, format=format, bits=bits, quality=100, unique_id="0a" * 16)
    photograph = read(data, "x")
    if format != "jpeg":
        assert (photograph.pixels[0] - picture).abs().max() < 0.01 / 65535
    assert (photograph.pixels[0] - picture).abs().max() < 8 / 255
    kept = photograph.kept
    assert kept.icc == PROFILE
    assert kept.xmp == XMP
    assert kept.dpi == pytest.approx((300, 300), rel=1e-4)
    assert kept.exif[271] == "Maker"
    assert kept.exif[0x8825][2] == (1.0, 2.0, 3.0)
    inner = kept.exif[0x8769]
    assert inner[0xA434] == "a lens"
    assert (inner[0xA002], inner[0xA003]) == (17, 13)  # of the new picture
    assert unique_id(data) == "0a" * 16
    with Image.open(io.BytesIO(data)) as opened:  # any program can read it
        opened.load()
        assert opened.size == (17, 13)


@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_was_held_somehow(format, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = XMP.replace(b'n="1"', f'n="{orientation}"'.encode())
    options = {"exif": exif} if format == "tiff" else {"exif": exif, "xmp": xmp}
    if format == "png":
        options = {"exif": exif}
    smooth = Image.fromarray((noise(3, 8, 3, 4).permute(1, 2, 0) * 255).byte().numpy()).resize((24, 16), 3)
    smooth.save(tmp_path / "x", format, quality=95, **options)
    photograph = read((tmp_path / "x").read_bytes(), "x")
    with Image.open(tmp_path / "x") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert torch.equal((photograph.pixels[0] * 255).byte(), torch.from_numpy(expected.copy()).permute(2, 0, 1))
    again = encode(photograph.pixels[0], photograph.kept)
    with Image.open(io.BytesIO(again)) as opened:
        assert opened.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened)), expected)


def png16(samples, kind, interlaced=False):
    """A PNG of 16 bits by the book: unfiltered rows."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IEND", b"")]
    )


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_all_sixteen_bits_of_a_png_are_read(kind, channels):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    came = (read(png16(samples, kind), "x").pixels[0].permute(1, 2, 0).double() * 65535).round().numpy()
    expected = samples if channels > 2 else samples[:, :, [0, 0, 0, 1][: 3 + (channels == 2)]]
    assert np.array_equal(came, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_all_sixteen_bits_of_a_tiff_are_read(order, compressed, channels):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    strip = samples.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    tags = {256: 7, 257: 9, 258: (16,) * channels, 259: 8 if compressed else 1, 262: 2, 277: channels, 278: 9}
    tags |= {273: 0, 279: len(strip), 338: 2} if channels == 4 else {273: 0, 279: len(strip)}
    directory = Image.Exif()
    directory.endian = order
    for tag, value in tags.items():
        directory[tag] = value
    data = directory.tobytes()[6:] + strip
    came = (read(data, "x").pixels[0].permute(1, 2, 0).double() * 65535).round().numpy()
    assert np.array_equal(came, samples)


def test_what_is_no_picture_is_said_in_a_sentence():
    good = encode(noise(3, 16), bits=16)
    for data in (b"", b"nothing", good[:40], good[: len(good) // 2]):
        with pytest.raises(ImageError, match=r"Cannot read photo\.png as an image"):
            read(data, "photo.png")
    grey = io.BytesIO()
    Image.new("F", (3, 3)).save(grey, "TIFF")
    with pytest.raises(ImageError, match="floating-point"):
        read(grey.getvalue(), "x")


def test_what_no_file_can_be_is_refused():
    for words, said in (
        ({"format": "gif"}, "png, jpeg, webp, tiff"),
        ({"format": "jpeg", "bits": 16}, "16 bits per channel go into PNG and TIFF"),
        ({"format": "jpeg", "alpha": True}, "alpha channel, which a JPEG"),
        ({"format": "webp", "quality": 101}, "1 to 100"),
        ({"format": "png", "bits": 12}, "8 or 16"),
    ):
        with pytest.raises(ImageError, match=said):
            check_format(**words)
    with pytest.raises(ImageError, match="webp file cannot hold this picture of 17000x1"):
        encode(torch.zeros(3, 1, 17000), format="webp")


def test_a_profile_that_is_not_for_rgb_and_tags_that_nobody_can_write_are_left_out():
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG", icc_profile=grey)
    assert read(file.getvalue(), "x").kept.icc is None
    broken = Kept({**EXIF, 305: object()})
    data = encode(noise(3, 8), broken, unique_id="1b" * 16)
    assert read(data, "x").kept.exif == {0x8769: {0xA420: "1b" * 16}}
