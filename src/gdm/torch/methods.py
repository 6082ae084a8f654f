"""Methods that PyTorch does not have, as optimizers of PyTorch: for what gdm's kernels cannot update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import _get_scalar_dtype, _use_grad_for_differentiable

from .arrange import WIDE


class _Method(torch.optim.Optimizer):
    """A method with states like the parameter, updated by one operation of PyTorch after the other."""

    _states: ClassVar[tuple[str, ...]] = ("exp_avg",)
    _counts: ClassVar[bool]  # as in NativeStep

    def _require(self, *, lr: Any, weight_decay: float, fused: bool | None, differentiable: bool) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if fused and differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")

    def _require_not_negative(self, **options: Any) -> None:
        for name, value in options.items():
            if not value >= 0.0:
                raise ValueError(f"Invalid {name} value: {value}")

    def _require_betas(self, betas: tuple[float, ...]) -> None:
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")

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
                if self._states[0] not in state:
                    if self._counts:
                        state["step"] = torch.zeros((), dtype=_get_scalar_dtype(), device="cpu")
                    for key in self._states:
                        state[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
                if self._counts:
                    state["step"] += 1
                self._update(group, state, param, -param.grad if group["maximize"] else param.grad, lr)
        return loss

    def _update(self, group: dict[str, Any], state: dict[str, Any], param: Any, grad: Any, lr: float) -> None:
        """Updates one parameter and its states."""
        if group["weight_decay"] != 0:
            if group.get("decoupled_weight_decay", True):
                param.mul_(1 - lr * group["weight_decay"])
            else:
                grad = grad.add(param, alpha=group["weight_decay"])
        param.add_(self._direction(group, state, grad), alpha=-lr)

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        """The direction of the step; updates the averages."""
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
        self._require_betas(betas)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {**defaults, "foreach": foreach, "differentiable": differentiable, "fused": fused})

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        (beta1, beta2), exp_avg = group["betas"], state["exp_avg"]
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

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        momentum = group["momentum"]
        return state["exp_avg"].mul_(momentum).add_(grad, alpha=1 - momentum).sign()


class AdEMAMix(_Method):
    """AdEMAMix with PyTorch's operations."""

    _states = ("exp_avg", "exp_avg_slow", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: float = 0.0,
        t_beta3: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        if len(betas) != 3:
            raise ValueError(f"Invalid betas, expected three: {betas}")
        self._require_betas(betas)
        self._require_not_negative(alpha=alpha, t_alpha=t_alpha, t_beta3=t_beta3, eps=eps)
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps}
        defaults |= {"weight_decay": weight_decay, "maximize": maximize, "foreach": foreach}
        super().__init__(params, {**defaults, "differentiable": differentiable, "fused": fused})

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        beta1, beta2, beta3 = group["betas"]
        step, alpha = state["step"].item(), group["alpha"]
        if step < group["t_alpha"]:
            alpha *= step / group["t_alpha"]
        if beta3 and step < group["t_beta3"]:
            done = step / group["t_beta3"]
            fast = (1 - done) / math.log(beta1) if beta1 else 0.0
            beta3 = min(beta3, math.exp(1 / (fast + done / math.log(beta3))))
        fast = state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
        slow = state["exp_avg_slow"].mul_(beta3).add_(grad, alpha=1 - beta3)
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (squares / (1 - beta2**step)).sqrt().add_(group["eps"])
        return (fast / (1 - beta1**step) + alpha * slow) / denominator


class LARS(_Method):
    """LARS with PyTorch's operations."""

    _states = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt: bool = True,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        self._require_not_negative(trust_coefficient=trust_coefficient)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapt": adapt}
        defaults |= {"trust_coefficient": trust_coefficient, "maximize": maximize, "foreach": foreach}
        super().__init__(params, {**defaults, "differentiable": differentiable, "fused": fused})

    def _update(self, group: dict[str, Any], state: dict[str, Any], param: Any, grad: Any, lr: float) -> None:
        decay, trust = group["weight_decay"], 1.0
        if group["adapt"]:
            size, slope = param.norm().item(), grad.norm().item()
            if size > 0 and slope > 0:
                trust = group["trust_coefficient"] * size / (slope + decay * size)
        velocity = state["momentum_buffer"].mul_(group["momentum"])
        param.sub_(velocity.add_(grad.add(param, alpha=decay), alpha=lr * trust))


class LAMB(_Method):
    """LAMB with PyTorch's operations."""

    _states = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt: bool = True,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        self._require_betas(betas)
        self._require_not_negative(eps=eps)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt}
        defaults |= {"maximize": maximize, "foreach": foreach}
        super().__init__(params, {**defaults, "differentiable": differentiable, "fused": fused})

    def _update(self, group: dict[str, Any], state: dict[str, Any], param: Any, grad: Any, lr: float) -> None:
        (beta1, beta2), step, trust = group["betas"], state["step"].item(), 1.0
        average = state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (squares / (1 - beta2**step)).sqrt().add_(group["eps"])
        direction = (average / (1 - beta1**step) / denominator).add_(param, alpha=group["weight_decay"])
        if group["adapt"]:
            size, length = param.norm().item(), direction.norm().item()
            if size > 0 and length > 0:
                trust = size / length
        param.sub_(direction, alpha=lr * trust)


class _ScheduleFree(_Method):
    """What both Schedule-Free methods share."""

    def _share(self, group: dict[str, Any]) -> float:
        raise NotImplementedError

    def _update(self, group: dict[str, Any], state: dict[str, Any], param: Any, grad: Any, lr: float) -> None:
        step = state["step"].item()
        for key in WIDE:
            if key not in state:
                state[key] = torch.zeros((), dtype=torch.float64, device="cpu")
        if step == 1:
            state["z"].copy_(param)
        if step < group["warmup_steps"]:
            lr = lr * (step / group["warmup_steps"])
        state["lr_max"].fill_(max(lr, state["lr_max"].item()))
        weight = step ** group["r"] * state["lr_max"].item() ** group["weight_lr_power"]
        state["weight_sum"] += weight
        newest = weight / state["weight_sum"].item() if state["weight_sum"] else 0.0
        direction = self._direction(group, state, grad)
        if group["weight_decay"] != 0:
            direction = direction.add(param, alpha=group["weight_decay"])
        z = state["z"].to(param.dtype)
        param.lerp_(z, newest).sub_(direction, alpha=lr * (1 - self._share(group) * (1 - newest)))
        state["z"].sub_(direction, alpha=lr)


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-Free gradient descent with PyTorch's operations."""

    _states = ("z",)

    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        self._require_not_negative(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        if not 0.0 < momentum < 1.0:
            raise ValueError(f"Momentum must be between 0 and 1 exclusive: {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        defaults |= {"r": r, "weight_lr_power": weight_lr_power, "train_mode": True, "maximize": maximize}
        super().__init__(params, {**defaults, "foreach": foreach, "differentiable": differentiable, "fused": fused})

    def _share(self, group: dict[str, Any]) -> float:
        return float(group["momentum"])

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        return grad


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-Free AdamW with PyTorch's operations."""

    _states = ("z", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._require(lr=lr, weight_decay=weight_decay, fused=fused, differentiable=differentiable)
        self._require_not_negative(eps=eps, warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        if not 0.0 < betas[0] < 1.0:
            raise ValueError(f"Invalid beta parameter at index 0: {betas[0]}")
        if not 0.0 <= betas[1] < 1.0:
            raise ValueError(f"Invalid beta parameter at index 1: {betas[1]}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        defaults |= {"r": r, "weight_lr_power": weight_lr_power, "train_mode": True, "maximize": maximize}
        super().__init__(params, {**defaults, "foreach": foreach, "differentiable": differentiable, "fused": fused})

    def _share(self, group: dict[str, Any]) -> float:
        return float(group["betas"][0])

    def _direction(self, group: dict[str, Any], state: dict[str, Any], grad: Any) -> Any:
        beta2 = group["betas"][1]
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        return grad / (squares / (1 - beta2 ** state["step"].item())).sqrt_().add_(group["eps"])
