"""A program that damages image files and reads them as the command line does, within limits of memory and time.

`python -m core.hostile_pictures FOLDER SEED COUNT [FORMAT ...]`, in the folder of the tests, prints a JSON object of
each format: how many files were tried and could be read, and the most memory and seconds that one took. It ends with
status 1 at the first that breaks a promise, and keeps that file in FOLDER.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from flowcore import ImageError
from flowcore.images import files
from flowcore.images.opening import BYTES_PER_PIXEL, IMAGE_SUFFIXES, SIGNATURES, open_image

from .hostile import MAX_SECONDS, TIMEOUT, _status

MAX_MEMORY = 2**26  # bytes beside those of the pixels that its header states, and eight times the file
SECONDS_PER_PIXEL = 2e-7  # beside ``MAX_SECONDS``, for all the ways together
NEVER_READ = ("EPS", "WMF")  # formats of which Pillow starts other programs
FORBIDDEN = ("subprocess", "socket", "ctypes", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")


class Watch:
    """Notes what a reader may not do: start programs, open connections, call libraries, write or delete files."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN) or event in ("os.remove", "os.rename", "os.mkdir"):
            self.seen.append(f"{event} {arguments}")


def originals() -> dict[str, list[bytes]]:
    """Write good files of every format, in many of its ways to store pixels."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 4), dtype=np.uint8)).resize((41, 29), Image.Resampling.BICUBIC)
    deep = Image.fromarray(rng.integers(0, 65536, (29, 41), dtype=np.uint16))
    images = {mode: coarse.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")}
    images["I;16"] = deep
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "maker" * 9
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    common = {"exif": exif, "icc_profile": profile}
    frames = {"save_all": True, "duration": 40}
    ways = {
        "AVIF": [{}, common, {"quality": 30}, frames],
        "BMP": [{}],
        "GIF": [{}, frames, {"interlace": 0}],
        "JPEG": [{}, common, {"progressive": True}, {"subsampling": 2, "restart_marker_rows": 1}],
        "JPEG2000": [{}, {"tile_size": (16, 16)}, {"quality_layers": [20, 5], "irreversible": True}, {"no_jp2": True}],
        "PNG": [{}, common, {"compress_level": 0}, frames],
        "PPM": [{}],
        "TIFF": [
            {"compression": name} for name in (None, "jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4")
        ]
        + [{**common, "compression": "tiff_lzw"}, frames],
        "WEBP": [{}, {"lossless": True}, common, frames],
        "TGA": [{}, {"compression": "tga_rle"}],
    }
    Image.init()
    made: dict[str, list[bytes]] = {}
    for format, options in ways.items():
        made[format] = []
        for image in images.values():
            for option in options if format in Image.SAVE else ():
                more = {"append_images": [image.rotate(180)]} if "save_all" in option else {}
                try:
                    image.save(file := io.BytesIO(), format, **option, **more)
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # the format has no such pixels
                made[format].append(file.getvalue())
        assert made[format] or format == "AVIF", format
    made["PPM"] += [b"P%d\n# plain\n9 7\n255\n" % kind + b"17 1 " * 200 for kind in (1, 2, 3)]
    made["PNG"] += [files.encode(files.read(data, "x").pixels[0], bits=16) for data in made["PNG"][:3]]
    coarse.convert("RGB").save(file := io.BytesIO(), "EPS")
    made["EPS"] = [file.getvalue(), b"\xc5\xd0\xd3\xc6" + bytes(26) + file.getvalue()]
    made["WMF"] = [
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(16) + b"\1\0\t\0" + bytes(200),
        b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(99),
    ]
    return made


LIMITS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file: bytes, numbers, pieces; most of the time so that its first bytes still tell its format."""
    changed = bytearray(data)
    first = 0 if rng.random() < 0.05 else 2
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        span = len(changed) if rng.random() < 0.5 else min(len(changed), 200)  # headers are at the beginning
        start = rng.randrange(first, max(first + 1, span))
        length = min(rng.choice((1, 2, 4, 16, 300)), max(0, len(changed) - start))
        match rng.randrange(8):
            case 0:
                changed[start : start + 1] = bytes([rng.randrange(256)])
            case 1:
                size, order = rng.choice((1, 2, 4)), rng.choice(("big", "little"))
                changed[start : start + size] = (rng.choice(LIMITS) % 256**size).to_bytes(size, order)
            case 2:
                del changed[start : start + length]
            case 3:
                changed[start:start] = changed[start : start + length] * rng.choice((1, 2, 50))
            case 4:
                changed[start : start + length] = rng.randbytes(length)
            case 5:
                del changed[start:]
            case 6:
                place = rng.randrange(len(other))
                changed[start : start + length] = other[place : place + length]
            case _:
                if changed:
                    changed[min(start, len(changed) - 1)] ^= 1 << rng.randrange(8)
    return repair_checksums(bytes(changed)) if rng.random() < 0.7 else bytes(changed)


def repair_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that its decoder goes on."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    place, repaired = 8, bytearray(data)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        repaired[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(repaired)


def read_as_the_command_line_does(path: Path) -> bool:
    """Read a file in every way that commands do; return whether it can be read."""
    files.upright_size(path)
    files.bits_per_channel(path)
    try:
        data = files.read_bytes(path)
    except ImageError:
        return False
    for look in (files.unique_id, files.frame_times, files.is_whole):
        look(data)
    files.text(data, "flowcore-size")
    readable = True
    for read in (files.read, files.read_rgb, files.read_frames if files.frame_count(data) > 1 else files.read_rgb):
        try:
            read(data, path.name)
        except ImageError as error:
            readable = False
            if not str(error).startswith(f"Cannot read {path.name} as an image: "):
                raise
    return readable


def claimed_pixels(path: Path) -> int:
    """Return how many pixels a file states, with those of all its frames, each as large as the largest."""
    pixels = frames = 0
    with contextlib.suppress(ImageError), open_image(path) as opened:
        pixels, frames = opened.width * opened.height, 1
        frames = getattr(opened, "n_frames", 1)
        for number in range(frames):  # a GIF's may exceed its screen
            opened.seek(number)
            pixels = max(pixels, opened.width * opened.height)
    return pixels * frames


def main() -> None:
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    rng, watch = random.Random(seed), Watch()
    made = originals()
    everything = [data for data_of in made.values() for data in data_of]
    for data in everything:  # imports what decoders need
        (folder / "a.png").write_bytes(data)
        read_as_the_command_line_does(folder / "a.png")
    found: dict[str, dict[str, float]] = {}
    for format, data_of in made.items():
        if sys.argv[4:] and format not in sys.argv[4:]:
            continue
        tried = readable = 0
        most_seconds = most_memory = 0.0
        for _ in range(count if data_of else 0):
            path = folder / f"{format}{rng.choice(sorted(IMAGE_SUFFIXES))}"
            path.write_bytes(content := damage(rng.choice(data_of), rng.choice(everything), rng))
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
            before, start = _status("VmRSS"), time.process_time()
            faulthandler.dump_traceback_later(10 * TIMEOUT, exit=True)  # of waiting; processor time has a bound
            watch.active, problem = True, ""
            try:
                could_be_read = read_as_the_command_line_does(path)
                readable += could_be_read
                if could_be_read and format in NEVER_READ and not any(s.match(content) for s, _ in SIGNATURES.values()):
                    problem = "it was read"
            except BaseException:
                problem = traceback.format_exc()
            watch.active = False
            faulthandler.cancel_dump_traceback_later()
            seconds, memory = time.process_time() - start, _status("VmHWM") - before
            allowed, bound = MAX_SECONDS, MAX_MEMORY + 8 * len(content)
            if memory > bound or seconds > allowed:  # a small file may state, and be, a large image
                pixels = claimed_pixels(path)
                allowed, bound = allowed + pixels * SECONDS_PER_PIXEL, bound + pixels * BYTES_PER_PIXEL
            if watch.seen or seconds > allowed or memory > bound:
                problem += f"{watch.seen} {seconds:.1f} s of {allowed:.1f}, {memory >> 20} MiB of {bound >> 20}"
            if problem:
                os.rename(path, kept := folder / f"broke-{seed}-{path.name}")
                sys.exit(f"{kept}: {problem}")
            most_seconds, most_memory = max(most_seconds, seconds), max(most_memory, memory)
            tried += 1
            path.unlink()
        found[format] = {"tried": tried, "readable": readable}
        found[format] |= {"seconds": round(most_seconds, 2), "MiB": round(most_memory / 2**20)}
        sys.stdout.write(json.dumps({format: found[format]}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
