"""What all optimizer classes share, by subject: base, groups, options, layout, state, snapshot, state_dict."""

from .base import Optimizer
from .groups import Group, Groups

__all__ = ["Group", "Groups", "Optimizer"]
