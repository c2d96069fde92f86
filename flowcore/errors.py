"""Errors that a caller can fix; each message states what was expected, what was given, and what to do."""

import re

VERSION = "0.1.0"  # version of flowcore; here, because it is needed before torch is imported
# Raised whenever a model, a seed and settings give another picture than before; recipes state it.
# ``tests/golden/picture_version.json`` records of which pictures it is.
PICTURE_VERSION = 1

# control characters, separators of lines, those that reverse the direction of text, and bytes that are not UTF-8
UNPRINTABLE = re.compile(r"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show, as names of files may hold it."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class FlowError(ValueError):
    """An error that the caller can fix; each argument is a line of its message."""

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class ShapeError(FlowError):
    """A tensor has a shape that the model does not accept."""


class ConditionError(FlowError):
    """A condition is missing, not expected, or does not fit the image."""


class CheckpointError(FlowError):
    """A file is not a model that flowcore can read."""


class PrecisionError(FlowError):
    """A precision in which a flow is not invertible was requested."""


class ImageError(FlowError):
    """An image has values or a size that no task can use."""
