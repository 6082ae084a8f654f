"""Methods that PyTorch does not have, as optimizers of PyTorch: for what gdm's kernels cannot update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import _use_grad_for_differentiable


class _Method(torch.optim.Optimizer):
    """A method with one state, ``exp_avg``, updated by one operation of PyTorch after the other."""

    def _require(self, *, lr: Any, weight_decay: float, fused: bool | None, differentiable: bool) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if fused and differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        present = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        for param in present:
            if param.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            if torch.is_complex(param):
                raise RuntimeError(f"{type(self).__name__} does not support complex parameters")
        for group in self.param_groups:
            lr = group["lr"]
            lr = lr.item() if isinstance(lr, torch.Tensor) else lr
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                grad = -param.grad if group["maximize"] else param.grad
                if group["weight_decay"] != 0:
                    if group.get("decoupled_weight_decay", True):
                        param.mul_(1 - lr * group["weight_decay"])
                    else:
                        grad = grad.add(param, alpha=group["weight_decay"])
                param.add_(self._direction(group, state["exp_avg"], grad), alpha=-lr)
        return loss

    def _direction(self, group: dict[str, Any], exp_avg: Any, grad: Any) -> Any:
        """The direction of the step; updates the average."""
        raise NotImplementedError


class Lion(_Method):
    """Lion with PyTorch's operations."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {**defaults, "foreach": foreach, "differentiable": differentiable, "fused": fused})

    def _direction(self, group: dict[str, Any], exp_avg: Any, grad: Any) -> Any:
        beta1, beta2 = group["betas"]
        direction = exp_avg.mul(beta1).add_(grad, alpha=1 - beta1).sign_()
        exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
        return direction


class Signum(_Method):
    """Signum with PyTorch's operations."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"decoupled_weight_decay": decoupled_weight_decay, "foreach": foreach}
        super().__init__(params, {**defaults, "differentiable": differentiable, "fused": fused})

    def _direction(self, group: dict[str, Any], exp_avg: Any, grad: Any) -> Any:
        momentum = group["momentum"]
        return exp_avg.mul_(momentum).add_(grad, alpha=1 - momentum).sign()
