"""gdm for PyTorch: states of optimizers to and from ``torch.optim``. PyTorch is imported when a function is called."""

from .state_dict import load_state_dict, to_state_dict

__all__ = ["load_state_dict", "to_state_dict"]
