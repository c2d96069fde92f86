"""The tasks that make pictures of picture files, in the order of the commands."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .task import Task

HELP = {  # each command's help, which is shown before torch is imported
    "upscale": "enlarge photographs",
    "colorize": "color black-and-white photographs, in many ways",
    "brighten": "brighten dark photographs, in one picture or many exposures",
    "clean": "remove noise and JPEG artifacts from pictures, at their size",
    "repair": "repair scratches and dust, or what a mask covers, in many ways",
    "shrink": "make small pictures of photographs, for restore to enlarge again",
    "restore": "undo shrink: restore photographs from the small pictures that it made",
    "faces": "enlarge photographs, and the faces in them by a model of faces",
}


@cache
def tasks() -> "dict[str, Task]":
    """Import the rows of the tasks; they need torch."""
    from . import brighten, clean, colorize, faces, repair, rescale, upscale

    modules = (upscale, colorize, brighten, clean, repair, faces)
    rows = {row.name: row for row in (*(module.TASK for module in modules), rescale.SHRINK, rescale.RESTORE)}
    return {name: rows[name] for name in HELP}
