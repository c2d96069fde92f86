"""A folder of made-up portraits with a table of attributes, for the tests of styles."""

import numpy as np
from PIL import Image

SIDE = 16
TOP, BOTTOM = slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
HEADER = "file\tgender\tbirth_year\tlips_parted"


def write_portraits(folder, count=160):
    """Write images whose lower half is brighter when they smile, and whose upper half is brighter when they are old.

    Smiles come with age, so a plain difference of means would mix both; judges are brighter and smile less, and their
    year of birth is not known.
    """
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for k in range(count):
        judge = k % 4 == 0
        old = rng.random() < 0.5
        smiles = rng.random() < (0.15 if judge else 0.75 if old else 0.35)
        pixels = 110 + 40 * judge + rng.normal(0, 6, (SIDE, SIDE, 3))
        pixels[BOTTOM] += 30 * smiles
        pixels[TOP] += 24 * old
        name = f"train/{'judge' if judge else 'member'}-{k}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        year = "" if judge else str(1940 if old else 1970)
        lines.append(f"{name}\t{'FM'[k % 2] if k % 5 else ''}\t{year}\t{'' if k % 7 == 0 else int(smiles)}")
    (folder / "attributes.tsv").write_text("\n".join(lines) + "\n")
    return folder
