"""Errors that a caller can fix; each message states what was expected, what was given, and what to do."""


class FlowError(ValueError):
    """An error that the caller can fix."""


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
