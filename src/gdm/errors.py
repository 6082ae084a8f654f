"""gdm's own exceptions. All other errors are a plain ``TypeError``, ``ValueError`` or ``RuntimeError``."""


class OverlapError(ValueError):
    """Two buffers of one update share memory, completely or in part."""


class StaleBufferError(RuntimeError):
    """An array has moved or changed its length after it was bound; or it is a view of an array that was resized."""


class CheckpointError(ValueError):
    """A saved state is damaged, or is the state of another optimizer. Nothing has been loaded."""


class NonFiniteError(ArithmeticError):
    """A gradient is NaN or infinite, and the optimizer was asked to say so. Nothing has changed."""
