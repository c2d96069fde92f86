"""Errors that the caller can mend; each message says what was expected, what came, and what to do."""


class FlowError(ValueError):
    """Something the caller can mend; the message says what was expected, what came, and what to do."""


class ShapeError(FlowError):
    """A tensor has a shape that the model cannot take."""


class ConditionError(FlowError):
    """A condition is missing, superfluous or does not fit the image."""


class CheckpointError(FlowError):
    """A file is not a model that flowcore can read."""


class PrecisionError(FlowError):
    """A precision was asked for in which a flow is no longer invertible."""


class ImageError(FlowError):
    """An image holds values or a size that no task can use."""
