"""The exceptions that are gdm's own; everything else is a plain ``TypeError``, ``ValueError`` or ``RuntimeError``."""


class OverlapError(ValueError):
    """Two buffers of one update share memory, in whole or in part."""


class StaleBufferError(RuntimeError):
    """A bound array has moved or changed its length since it was bound."""


class CheckpointError(ValueError):
    """A saved state is damaged, or belongs to another optimizer. Nothing has been loaded."""
