"""Muon, and AdamW for what is no matrix, as one of PyTorch's optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch

from .. import _checks
from .._checks import Options
from ..errors import NonFiniteError
from ..optimizers.muon import Muon as OfArrays
from ..optimizers.muon import shape_factor
from ..orthogonal import COEFFICIENTS, EPS, STEPS
from .arrange import Described, describe, label
from .native_step import NativeStep

Orthogonalize = Callable[[Any], Any]
WORTH_BFLOAT16 = 128  # on a CPU with AMX, float32 is faster for matrices with a shorter side


def newton_schulz(
    matrix: Any,
    *,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    ns_steps: int = STEPS,
    eps: float = EPS,
    dtype: Any = None,
) -> Any:
    """:func:`gdm.newton_schulz` with PyTorch's products, for a tensor.

    Parameters
    ----------
    matrix : tensor of floats, shape (rows, columns)
        It is only read.
    ns_coefficients, ns_steps, eps
        As for :func:`gdm.newton_schulz`.
    dtype : torch.float32 or torch.bfloat16, optional
        In which the products are computed. By default bfloat16 on a CPU with AMX units for it, if both sides are 128 or
        more, and else float32: it depends on that which is faster, by factors of 3 to 40.

    Returns
    -------
    tensor of this dtype, shape (rows, columns)

    Raises
    ------
    TypeError, ValueError
        As :func:`gdm.newton_schulz`.

    Examples
    --------
    >>> import torch, gdm
    >>> values = torch.linalg.svdvals(gdm.torch.newton_schulz(torch.tensor([[3.0, 1.0], [0.0, 2.0]])).float())
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two axes, got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise TypeError(f"matrix must be of real floats, got dtype {matrix.dtype}")
    options = _checks.options("muon", {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "eps": eps})
    a, b, c = options["ns_coefficients"]
    if dtype is None:
        dtype = torch.bfloat16 if has_fast_bfloat16() and min(matrix.shape) >= WORTH_BFLOAT16 else torch.float32
    x = matrix.detach()
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    norm = torch.linalg.vector_norm(x, dtype=torch.float64).item()
    divisor = max(norm, options["eps"])
    x = (x / divisor if divisor else torch.zeros_like(x)).to(dtype)
    for _ in range(options["ns_steps"]):
        gram = x @ x.T
        powers = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, powers, x, beta=a)
    return x.T if is_tall else x


@cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than those of float32 (docs/decisions.md)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def is_finite(x: Any) -> bool:
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())  # a sum may overflow


class Muon(NativeStep, torch.optim.Muon):
    """Muon for matrices, with AdamW for other parameters: ``torch.optim.Muon`` on gdm's kernels.

    Parameters
    ----------
    params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn
        As for ``torch.optim.Muon``. But a group with ``"method": "adamw"`` holds parameters of any shape, which AdamW
        updates. Its options are ``lr``, ``betas``, ``eps``, ``weight_decay``, ``amsgrad`` and ``maximize``, with the
        defaults of ``torch.optim.AdamW``.
    orthogonalize : callable, optional
        A function that is used instead of :func:`gdm.torch.newton_schulz`. It is given a matrix, float64 if its
        parameter is and else float32, which it may change, and returns one of this shape. A state does not contain it.
    threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As ``torch.optim.Muon`` does, in its words.
    gdm.NonFiniteError
        From a step, if an orthogonalized matrix is not finite, though what was orthogonalized is.

    Notes
    -----
    The formula is that of :func:`gdm.muon`. After an exception, also one that ``orthogonalize`` raises, nothing has
    changed. The results of matrix products are not the same on every machine; all else is, to the bit.

    The state of a matrix is ``momentum_buffer``; beside it there is an array of its size in float32 (or float64), which
    is used again in every step. PyTorch's own code updates what gdm cannot, such as distributed tensors: then without
    ``orthogonalize``, and without AdamW.

    Examples
    --------
    >>> import torch, gdm
    >>> model = torch.nn.Linear(3, 2)
    >>> opt = gdm.torch.Muon([{"params": [model.weight]}, {"params": [model.bias], "method": "adamw"}], lr=0.02)
    >>> model(torch.ones(4, 3)).sum().backward()
    >>> opt.step()
    >>> sorted(opt.state[model.weight]), sorted(opt.state[model.bias])
    (['momentum_buffer'], ['exp_avg', 'exp_avg_sq', 'step'])
    """

    _rule = "muon"
    _watched_too = ("betas", "amsgrad", "maximize", "method")
    _orthogonalize: Orthogonalize | None = None
    _places: Sequence[int] = ()  # while it is made: the indices that groups were given at, in the order of adding

    def __init__(
        self, params: Any, *args: Any, orthogonalize: Orthogonalize | None = None, copies: Any = None, **options: Any
    ) -> None:
        self.orthogonalize = orthogonalize
        others = []
        if isinstance(params, Iterable) and not isinstance(params, torch.Tensor):
            given = list(params)
            others = [(i, group) for i, group in enumerate(given) if _method_of(group) != "muon"]
            params = [x for x in given if _method_of(x) == "muon"]
            matrices = [i for i, x in enumerate(given) if _method_of(x) == "muon"]
            self._places = [*matrices, *(i for i, _ in others)]
        # PyTorch's class wants matrices only: the other groups are added afterwards, each in its place.
        if has_no_matrix := bool(others) and not params:
            params = [torch.empty(0, 0)]  # PyTorch's class wants a parameter, too
        super().__init__(params, *args, **options)
        if has_no_matrix:
            self.param_groups.clear()
        for i, group in others:
            self.add_param_group(group)
            self.param_groups.insert(i, self.param_groups.pop())
        self._places = []
        self.copies = copies

    @property
    def orthogonalize(self) -> Orthogonalize | None:
        """The function that orthogonalizes; None for :func:`gdm.torch.newton_schulz`."""
        return self._orthogonalize

    @orthogonalize.setter
    def orthogonalize(self, function: Orthogonalize | None) -> None:
        if function is not None and not callable(function):
            raise TypeError(f"orthogonalize must be a function or None, not {type(function).__name__}")
        self._orthogonalize = function

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_orthogonalize": self._orthogonalize}

    # ---- two methods ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of matrices; or of other parameters, with ``"method": "adamw"``.

        Raises
        ------
        ValueError
            Also for a parameter that is no matrix, and for another method.
        """
        if isinstance(param_group, dict) and _method_of(param_group) != "muon":
            _checks.word("method", param_group["method"], _checks.WORDS["method"])
            own = {name: x for name, x in OfArrays._adamw.items() if name != "decoupled_weight_decay"}
            super().add_param_group({**own, "maximize": False, **param_group})
            return
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for k, param in enumerate(group["params"]):
            if param.ndim != 2:
                self.param_groups.pop()
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found a parameter with size: {param.size()}. It is "
                    f"{label(group, self._next_place(), k)}; give such parameters in a group with 'method': 'adamw'"
                )

    def _next_place(self) -> int:
        added = super()._next_place()
        return self._places[added] if added < len(self._places) else added

    def _describe(self, group: Options) -> Described | None:
        if _method_of(group) == "adamw":
            return describe("adam", group, {"decoupled_weight_decay": True})
        return describe("muon", group, {"maximize": False})

    def _rules(self) -> tuple[str, ...]:
        return "muon", "adam"

    def _counts_steps(self, rule: str) -> bool:
        return rule == "adam"

    def _step_by_torch(self, indices: list[int]) -> None:
        groups = [group for group in self.param_groups for _ in group["params"]]
        for i in indices:
            if _method_of(groups[i]) == "adamw":
                raise RuntimeError(f"gdm cannot update {self._name_of(i)} by AdamW, and torch.optim.Muon has no AdamW")
            if self._orthogonalize is not None:
                raise RuntimeError(
                    f"gdm cannot update {self._name_of(i)}, and torch.optim.Muon, which could, has no orthogonalize"
                )
        super()._step_by_torch(indices)

    # ---- between the two passes of a step ----

    def _finish_preparation(self, group: int, param: Any, states: Any) -> None:
        work, options = states[1], self.param_groups[group]
        with torch.no_grad():
            was_finite = is_finite(work)
            if self._orthogonalize is None:
                names = ("ns_coefficients", "ns_steps", "eps")
                result = newton_schulz(work, **{name: options[name] for name in names})
            else:
                result = self._orthogonalize(work)
            if not isinstance(result, torch.Tensor) or not result.is_floating_point():
                found = f"dtype {result.dtype}" if isinstance(result, torch.Tensor) else type(result).__name__
                raise TypeError(f"orthogonalize returned {found}; expected a tensor of floats")
            if result.shape != work.shape:
                raise ValueError(f"orthogonalize returned shape {tuple(result.shape)}; expected {tuple(work.shape)}")
            work.copy_(result.to(work.dtype) * shape_factor(options["adjust_lr_fn"], tuple(work.shape)))
            if was_finite and not is_finite(work):
                raise NonFiniteError(f"orthogonalize returned what is NaN or infinite, of shape {tuple(work.shape)}")


def _method_of(group: Any) -> Any:
    """How a group's parameters are updated; "muon" for what is no group."""
    return group.get("method", "muon") if isinstance(group, dict) else "muon"
