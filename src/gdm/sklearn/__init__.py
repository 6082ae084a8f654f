"""gdm for scikit-learn: its multi-layer perceptrons, whose solvers "adam" and "sgd" run on gdm's kernels.

gdm.sklearn.MLPClassifier(hidden_layer_sizes=(512,))    in the place of sklearn.neural_network.MLPClassifier
gdm.sklearn.MLPRegressor(solver="sgd")                  likewise
"""

try:
    import sklearn.neural_network as _  # noqa: F401
except ImportError as error:
    raise ImportError("gdm.sklearn needs scikit-learn: pip install 'gdm-optim[sklearn]'") from error

from .perceptrons import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
