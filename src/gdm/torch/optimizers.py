"""The optimizers: subclasses of those in ``torch.optim`` whose steps run on gdm's kernels."""

from __future__ import annotations

import torch

from .._checks import Options
from . import methods
from .arrange import Described, describe, may_change
from .modes import Modes
from .native_step import NativeStep

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
]


class SGD(NativeStep, torch.optim.SGD):
    """Gradient descent, with momentum and Nesterov's: ``torch.optim.SGD`` on gdm's kernels.

    It is used as PyTorch's class, of which it is a subclass: groups, schedulers, hooks, ``state_dict`` and all else are
    PyTorch's. The states have the same keys, so each class loads what the other saved.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, maximize, differentiable
        As for ``torch.optim.SGD``.
    foreach, fused
        Are accepted and make no difference.
    threads : int, optional
        How many threads a step may use, from 1 to 256; by default as many as ``torch.get_num_threads()`` says. The
        updated values do not depend on it.
    state_dtype : {"float32", "bfloat16", "float16"}, or torch's dtype, optional
        The dtype of the states; by default that of their parameter, as in torch.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How bfloat16 and float16 parameters and states are rounded when they are stored. Stochastically, a number goes
        up or down at random so that its mean is kept: small changes are not lost.
    seed : int, default 0
        Of the random bits, from 0 to 2**64 - 1. They also depend on the number of the step, the place of the parameter
        in the optimizer, and the place of the element in it; on nothing else.
    copies : list or dict, optional
        For each parameter a tensor, or None, into which every step writes the new parameter, rounded to the nearest
        number of the tensor's dtype: a list in the order of all parameters, or a dict by parameter. Each has the shape
        of its parameter and memory of its own. A parameter that has no gradient in a step is not written.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As ``torch.optim.SGD`` does, in its words; and for the arguments that torch does not have, and for a parameter
        on the device ``meta``.

    Notes
    -----
    gdm updates float32, float64, bfloat16 and float16 parameters on the CPU whose elements fill their memory, in any
    order of the axes; of a distributed tensor the local part. PyTorch's own for-loop updates all others, such as
    complex parameters, and those with sparse gradients. Narrow numbers are computed with in float32, and rounded once
    when they are stored. The formulas are those of :func:`gdm.sgd` and :func:`gdm.momentum`, and so are the bits.

    Examples
    --------
    >>> import torch, gdm
    >>> theta = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> opt = gdm.torch.SGD([theta], lr=0.25, momentum=0.5)
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     theta.square().sum().backward()
    ...     opt.step()
    >>> theta
    Parameter containing:
    tensor([-0.2500,  0.2500], requires_grad=True)
    """

    _counts = False
    _rule = "momentum"

    def _describe(self, group: Options) -> Described | None:
        fixed = {"decoupled_weight_decay": False, "form": "torch"}
        described = describe("momentum" if group["momentum"] else "sgd", group, fixed)
        if described is not None and may_change(group["momentum"]):  # then the rule may, too
            return described._replace(live=True)
        return described


class Adagrad(NativeStep, torch.optim.Adagrad):
    """Adagrad: ``torch.optim.Adagrad`` on gdm's kernels.

    Parameters
    ----------
    params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize, differentiable
        As for ``torch.optim.Adagrad``.
    foreach, fused, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.adagrad`.
    """

    _rule = "adagrad"

    def _initial(self, key: str, group: Options) -> float:
        return self.defaults["initial_accumulator_value"] if key == "sum" else super()._initial(key, group)


class RMSprop(NativeStep, torch.optim.RMSprop):
    """RMSprop, plain, centered, and with momentum: ``torch.optim.RMSprop`` on gdm's kernels.

    Parameters
    ----------
    params, lr, alpha, eps, weight_decay, momentum, centered, capturable, maximize, differentiable
        As for ``torch.optim.RMSprop``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.rmsprop`.
    """

    _rule = "rmsprop"


class Adam(NativeStep, torch.optim.Adam):
    """Adam, and AMSGrad: ``torch.optim.Adam`` on gdm's kernels.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable, differentiable, decoupled_weight_decay
        As for ``torch.optim.Adam``.
    foreach, fused, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.adam`.
    """

    _rule = "adam"


class AdamW(NativeStep, torch.optim.AdamW):
    """AdamW: ``torch.optim.AdamW`` on gdm's kernels.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable, differentiable
        As for ``torch.optim.AdamW``.
    foreach, fused, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.adam`.

    Examples
    --------
    >>> import torch, gdm
    >>> model = torch.nn.Linear(3, 2)
    >>> opt = gdm.torch.AdamW(model.parameters(), lr=1e-3)
    >>> model(torch.ones(3)).sum().backward()
    >>> opt.step()
    >>> sorted(opt.state[model.bias])
    ['exp_avg', 'exp_avg_sq', 'step']
    """

    _rule = "adam"


class NAdam(NativeStep, torch.optim.NAdam):
    """NAdam: ``torch.optim.NAdam`` on gdm's kernels.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize, capturable, differentiable
        As for ``torch.optim.NAdam``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.nadam`.
    """

    _rule = "nadam"


class RAdam(NativeStep, torch.optim.RAdam):
    """RAdam: ``torch.optim.RAdam`` on gdm's kernels.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, decoupled_weight_decay, maximize, capturable, differentiable
        As for ``torch.optim.RAdam``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.radam`.
    """

    _rule = "radam"


class Adamax(NativeStep, torch.optim.Adamax):
    """Adamax: ``torch.optim.Adamax`` on gdm's kernels.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize, capturable, differentiable
        As for ``torch.optim.Adamax``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.adamax`.
    """

    _rule = "adamax"


class Adadelta(NativeStep, torch.optim.Adadelta):
    """Adadelta: ``torch.optim.Adadelta`` on gdm's kernels.

    Parameters
    ----------
    params, lr, rho, eps, weight_decay, maximize, capturable, differentiable
        As for ``torch.optim.Adadelta``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.adadelta`.
    """

    _rule = "adadelta"


class Lion(NativeStep, methods.Lion):
    """Lion, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch.
    lr : float or tensor, default 1e-4
        The learning rate, not negative.
    betas : pair of float, default (0.9, 0.99)
        How much of the average is kept for the direction, and for the next step; each in [0, 1).
    weight_decay : float, default 0
        The decoupled weight decay, not negative.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.lion` (X. Chen et al.,
        "Symbolic discovery of optimization algorithms", 2023). The state is ``exp_avg``.
    """

    _counts = False
    _rule = "lion"


class Signum(NativeStep, methods.Signum):
    """Signum, signSGD with momentum, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch.
    lr : float or tensor, default 1e-3
        The learning rate, not negative.
    momentum : float, default 0.9
        How much of the average is kept, in [0, 1).
    weight_decay : float, default 0
        The weight decay, not negative.
    decoupled_weight_decay : bool, default False
        Multiply the parameter by ``1 - lr * weight_decay``, and leave the gradient alone.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.signum` (J. Bernstein et
        al., "signSGD: compressed optimisation for non-convex problems", 2018). The state is ``exp_avg``.
    """

    _counts = False
    _rule = "signum"


class Rprop(NativeStep, torch.optim.Rprop):
    """Rprop: ``torch.optim.Rprop`` on gdm's kernels.

    Parameters
    ----------
    params, lr, etas, step_sizes, capturable, maximize, differentiable
        As for ``torch.optim.Rprop``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.rprop`, with which an
        element of the parameter becomes NaN where its gradient is NaN.
    """

    _rule = "rprop"


class ASGD(NativeStep, torch.optim.ASGD):
    """ASGD, averaged stochastic gradient descent: ``torch.optim.ASGD`` on gdm's kernels.

    Parameters
    ----------
    params, lr, lambd, alpha, t0, weight_decay, capturable, maximize, differentiable
        As for ``torch.optim.ASGD``.
    foreach, threads, state_dtype, rounding, seed, copies
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.asgd`.
    """

    _rule = "asgd"

    def _initial(self, key: str, group: Options) -> float:
        return float(group["lr"]) if key == "eta" else super()._initial(key, group)


class AdEMAMix(NativeStep, methods.AdEMAMix):
    """AdEMAMix, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch.
    lr : float or tensor, default 1e-3
        The learning rate, not negative.
    betas : three of float, default (0.9, 0.999, 0.9999)
        How much of the fast average, of the average of the squares, and of the slow average is kept; each in [0, 1).
    alpha : float, default 5
        The weight of the slow average, not negative.
    t_alpha, t_beta3 : float, default 0
        How many steps ``alpha`` and ``betas[2]`` grow for, not negative; 0: they are constant.
    eps : float, default 1e-8
        Added to the root in the denominator, not negative.
    weight_decay : float, default 0
        The decoupled weight decay, not negative.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.ademamix` (M.
        Pagliardini et al., "The AdEMAMix optimizer: better, faster, older", 2024). The states are ``exp_avg``,
        ``exp_avg_slow`` and ``exp_avg_sq``.
    """

    _rule = "ademamix"


class LARS(NativeStep, methods.LARS):
    """LARS, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch. Each parameter has a trust ratio of its own.
    lr : float or tensor, default 1
        The learning rate, not negative.
    momentum : float, default 0.9
        How much of the velocity is kept, in [0, 1).
    weight_decay : float, default 0
        The weight decay, not negative: it is added to the gradient.
    trust_coefficient : float, default 0.001
        The factor of the trust ratio, not negative.
    adapt : bool, default True
        False: the trust ratio is 1, as is usual for a group of biases and of the parameters of normalisations.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.lars` (Y. You, I.
        Gitman, B. Ginsburg, "Large batch training of convolutional networks", 2017). The state is ``momentum_buffer``.
        The norms of parameters that are distributed (DTensor) are those of the whole ones: PyTorch updates these.
    """

    _counts = False
    _rule = "lars"


class LAMB(NativeStep, methods.LAMB):
    """LAMB, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch. Each parameter has a trust ratio of its own.
    lr : float or tensor, default 1e-3
        The learning rate, not negative.
    betas : pair of float, default (0.9, 0.999)
        How much of the averages of gradients and of their squares is kept; each in [0, 1).
    eps : float, default 1e-6
        Added to the root in the denominator, not negative.
    weight_decay : float, default 0
        The weight decay, not negative: it is added to the step before its norm is taken.
    adapt : bool, default True
        False: the trust ratio is 1, as is usual for a group of biases and of the parameters of normalisations.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.lamb` (Y. You et al.,
        "Large batch optimization for deep learning: training BERT in 76 minutes", 2020). The states are ``exp_avg`` and
        ``exp_avg_sq``. The norms of parameters that are distributed (DTensor) are those of the whole ones: PyTorch
        updates these.
    """

    _rule = "lamb"


class ScheduleFreeSGD(Modes, NativeStep, methods.ScheduleFreeSGD):
    """Schedule-Free gradient descent, which PyTorch does not have, as one of its optimizers.

    An average of the iterates takes the place of a falling learning rate. In train mode, in which a new optimizer is,
    the parameters are the points at which gradients are computed. :meth:`eval` puts the average in their place, which
    is the result of the training; :meth:`train` goes back.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch.
    lr : float or tensor, default 1.0
        The learning rate, not negative.
    momentum : float, default 0.9
        How much of the average is in the points at which gradients are computed, in (0, 1). Change it in eval mode.
    weight_decay : float, default 0
        The weight decay, not negative.
    warmup_steps : float, default 0
        The learning rate rises linearly over so many steps.
    r : float, default 0
        The weights of the average grow as this power of the number of the step, not negative.
    weight_lr_power : float, default 2
        The weights of the average are proportional to this power of the largest learning rate so far, not negative.
    maximize : bool, default False
        Walk up the gradient.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.schedule_free_sgd` (A.
        Defazio et al., "The road less scheduled", 2024), names and defaults are those of
        ``schedulefree.SGDScheduleFree``, whose ``state_dict`` can be loaded. The states are ``z``, ``step``,
        ``weight_sum`` and ``lr_max``. The mode is ``"train_mode"`` in the groups.

    Examples
    --------
    >>> import torch, gdm
    >>> theta = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> opt = gdm.torch.ScheduleFreeSGD([theta], lr=0.25)
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     theta.square().sum().backward()
    ...     opt.step()
    >>> opt.eval()
    >>> theta
    Parameter containing:
    tensor([ 0.2729, -0.2729], requires_grad=True)
    """

    _rule = "schedule_free_sgd"


class ScheduleFreeAdamW(Modes, NativeStep, methods.ScheduleFreeAdamW):
    """Schedule-Free AdamW, which PyTorch does not have, as one of its optimizers.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for all optimizers of PyTorch.
    lr : float or tensor, default 0.0025
        The learning rate, not negative.
    betas : pair of float, default (0.9, 0.999)
        How much of the average is in the points at which gradients are computed, in (0, 1); and how much of the average
        of squared gradients is kept, in [0, 1). Change the first in eval mode.
    eps : float, default 1e-8
        Added to the root in the denominator, not negative.
    weight_decay : float, default 0
        The weight decay, not negative: ``lr * weight_decay`` times the parameter is a part of each step.
    warmup_steps, r, weight_lr_power, maximize
        As for :class:`gdm.torch.ScheduleFreeSGD`.
    foreach, fused, threads, state_dtype, rounding, seed, copies, differentiable
        As for :class:`gdm.torch.SGD`, as is everything else. The formula is that of :func:`gdm.schedule_free_adamw`.
        The states are ``z``, ``exp_avg_sq``, ``step``, ``weight_sum`` and ``lr_max``.
    """

    _rule = "schedule_free_adamw"
