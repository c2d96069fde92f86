"""Messages that can be translated, and errors that a caller can fix.

The message of an error states what was expected, what was given, and what to do.
"""

import re
from collections.abc import Iterable
from typing import Any

VERSION = "0.1.0"  # version of flowcore; here, because it is needed before torch is imported
# Raised whenever a model, a seed and settings give another picture than before; recipes state it, and CHANGELOG.md says
# which pictures. ``tests/golden/picture_version.json`` has the sums of pictures of this version.
PICTURE_VERSION = 3

# control characters, separators of lines, those that reverse the direction of text, and bytes that are not UTF-8
UNPRINTABLE = re.compile(r"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show, as names of files may hold it."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Argument(str):
    """The name of an argument in a message; a canvas shows the label of its input instead."""


class Message(str):
    """A sentence for people: its English text, and what a translation is made from, see ``say``."""

    template: str
    values: dict[str, Any]  # by name: texts that stay as they are, arguments, messages, or lists of these


def say(template: str, /, **values: object) -> Message:
    """Fill a template, which has ``{name}`` where a value belongs; translations are found by the template.

    Values are texts and numbers, which stay as they are, arguments, messages, errors, or lists of these. A template
    without values is a message, too, and a message without more values stays as it is.

    Example:
        >>> say("{count} pictures: {made}", count=3, made=say("{count} made", count=2))
        '3 pictures: 2 made'
    """
    if isinstance(template, Message) and not values:
        return template
    parts = {name: _part(value) for name, value in values.items()}
    english = {name: ", ".join(part) if isinstance(part, list) else part for name, part in parts.items()}
    return _message(template.format(**english) if values else template, template, parts)


def joined(texts: Iterable[str], separator: str = "") -> Message:
    """Join messages, and texts that stay as they are."""
    parts = {f"part{number}": text for number, text in enumerate(texts)}
    return _message(separator.join(parts.values()), separator.join(f"{{{name}}}" for name in parts), parts)


def on_lines(*texts: str) -> Message:
    """Put messages, and texts that stay as they are, on lines of their own."""
    return joined(texts, "\n")


def _message(text: str, template: str, values: dict[str, Any]) -> Message:
    message = Message(text)
    message.template, message.values = template, values
    return message


def _part(value: object) -> Any:
    if isinstance(value, FlowError):
        return value.message
    if isinstance(value, list):
        return [_part(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value if isinstance(value, Argument | Message) else printable(str(value))


class FlowError(ValueError):
    """An error that the caller can fix; each argument is a line of its message, a template if there are values."""

    def __init__(self, *lines: object, **values: object) -> None:
        super().__init__(*(say(str(line), **values) if values else line for line in lines))

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)

    @property
    def message(self) -> Message:
        """What the error says, for a translation."""
        lines = [line if isinstance(line, Message) else say(printable(str(line))) for line in self.args]
        return lines[0] if len(lines) == 1 else on_lines(*lines)


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
