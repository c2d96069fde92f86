"""Training data: photographs for upscalers and flows without a condition, colours for colorizers, labelled digits.

Whatever it is, ``batch(size, crop, seed, step)`` is a function of what it is given alone and may be called from any
thread, and ``training``, ``held_out`` and ``skipped`` say what there is.
"""

from .colours import Colours
from .digits import Digits, read_idx
from .photographs import Entry, Photographs
from .pictures import Picture, find_pictures

__all__ = ["Colours", "Digits", "Entry", "Photographs", "Picture", "find_pictures", "read_idx"]
