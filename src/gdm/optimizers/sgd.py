"""SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from .. import _checks
from ..optimizer import Optimizer
from ..optimizer.options import expanded_lr_scale, loaded_rate, rate_at

if TYPE_CHECKING:
    from .._checks import Options
    from ..optimizer.around import AroundOptions
    from ..optimizer.base import Params, Rate


class SGD(Optimizer):
    """Gradient descent, optionally with momentum: heavy ball or Nesterov, in torch's form or the classic form.

    Parameters
    ----------
    params : array, sequence or mapping of arrays, or list of groups
        What to optimize: float64, float32, bfloat16 or float16, any shapes, contiguous (C or Fortran order), aligned
        and writable; no two may share memory. NumPy arrays, tensors, or anything else in the CPU's memory with DLPack
        or the buffer protocol. They are updated in place and kept alive. A group is a mapping with the key
        ``"params"``, its own hyperparameters and, if you like, a ``"name"``: ``[{"params": weights, "weight_decay":
        1e-4}, {"params": biases, "name": "biases"}]``.
    lr : float or callable, default 0.01
        The learning rate η, finite and not negative; or a schedule: a function from the number of steps made before to
        the learning rate, from :mod:`gdm.schedules` or your own.
    momentum : float, default 0
        μ, in [0, 1): the share of the velocity that is kept from step to step. 0 is plain gradient descent, without a
        velocity.
    dampening : float, default 0
        τ, in [0, 1]: the gradient enters the velocity times ``1 - dampening``. Torch's form without Nesterov only.
    nesterov : bool, default False
        Nesterov's momentum: look ahead along the velocity. Needs ``momentum > 0``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    decoupled_weight_decay : bool, default False
        Multiply each parameter by ``1 - lr * weight_decay`` before its update, and leave the gradient alone (SGDW).
    maximize : bool, default False
        Walk up the gradient instead of down.
    form : {"torch", "classic"}, default "torch"
        Whether the learning rate scales the whole velocity when it is applied (PyTorch, optax, MLX), or each gradient
        when it enters the velocity (the textbook, Keras, scikit-learn). Both give the same path if ``lr`` is constant.
    lr_scale : float, or the structure of ``params``, default 1
        What the learning rate is multiplied by: one number, or for each parameter a number or an array like it, with a
        factor for each element. Numbers and arrays are copied.
    threads : int, optional
        How many threads a step may use, from 1 to 256; by default the result of :func:`gdm.get_num_threads`. The
        updated values do not depend on it.
    dtype : "bfloat16", optional
        What arrays of uint16 hold: the bits of bfloat16. Not needed for the dtype of ml_dtypes, or for tensors.
    state_dtype : str, optional
        How states are stored: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``; by default in the dtype in
        which the update is computed, float64 for float64 parameters, else float32. int8 states have a scale for each
        block of 128 elements, and are rounded stochastically.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How parameters and states that are bfloat16 or float16 are rounded. To nearest, changes of less than half of the
        last place are lost; stochastically they arrive on average. The result depends on ``seed`` and the number of
        updates, not on threads or the machine.
    seed : int, default 0
        Of stochastic rounding, from 0 to 2**64 - 1.
    split_masters : bool, default False
        Keep 16 more bits of each bfloat16 parameter with its states, so that it is updated as float32, exactly.
    max_grad_norm : float, optional
        If the norm of all gradients together is larger, they are multiplied by ``max_grad_norm / (norm + 1e-6)``.
    max_grad_value : float, optional
        Then each element is limited to between ``-max_grad_value`` and ``max_grad_value``.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a step does if a gradient is NaN or infinite: update with it; change nothing, and count it in
        ``skipped_steps``; or raise :class:`gdm.NonFiniteError`.
    average : float, optional
        The decay of a moving average of the parameters, in [0, 1): ``average += (1 - decay) * (param - average)`` after
        each update. It begins with the parameters.
    average_correction : bool, default False
        Correct the bias of the average towards its beginning, as Adam does: after the optimizer's first update it is
        the parameter.
    copies : in the structure of ``params``, optional
        Arrays of the parameters' shapes, of any float dtype, to which each step copies the parameters.
    clear_grads : bool, default False
        Set the gradients to 0 after they have been read, also in a skipped step. They must then be writable.

    Attributes
    ----------
    lr, ...
        The hyperparameters above, checked when set. Setting one sets it in every group.
    velocity
        The states, in the structure of ``params``; None for a parameter that has none. Views; of bfloat16 and int8
        states copies in float32.
    averages, copies
        As described above, in the structure of ``params``. ``with opt.swap_averages():`` evaluates with the averages.
    last_grad_norm : float
        The norm of all gradients in the last step, with ``max_grad_norm``.
    skipped_steps : int
        How many steps were skipped.
    nbytes : int
        The bytes of states and averages.
    groups : Groups
        The groups, by index or name, with the same attributes: ``opt.groups["head"].lr = 0.001``.
    steps : int
        How many steps have been made.

    Raises
    ------
    TypeError, ValueError, gdm.OverlapError
        If parameters or hyperparameters are not as described; the message names them.

    Notes
    -----
    Each parameter is updated by the formulas of :func:`gdm.sgd` (``momentum=0``) or :func:`gdm.momentum`. In torch's
    form the first step of a parameter sets its velocity to its gradient, without dampening, as ``torch.optim.SGD``
    does; in the classic form the velocity starts from zero.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, -1.0])
    >>> opt = gdm.SGD(theta, lr=0.25, momentum=0.5)
    >>> for _ in range(3):
    ...     opt.step(2 * theta)  # the gradient of theta ** 2
    >>> theta
    array([-0.25,  0.25])
    """

    _rule = "momentum"

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        form: Literal["torch", "classic"] = "torch",
        lr_scale: Any = 1.0,
        threads: int | None = None,
        **around: Unpack[AroundOptions],
    ) -> None:
        super().__init__(
            params,
            threads,
            lr_scale,
            around,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            form=form,
        )

    def _rule_of(self, options: Options) -> str:
        return "momentum" if options["momentum"] else "sgd"

    @staticmethod
    def to_form(state_dict: Mapping[str, Any], form: Literal["torch", "classic"]) -> dict[str, Any]:
        """A copy of a state for an optimizer of the other form, which continues along the same path.

        The classic velocity is ``-lr`` times torch's, with the learning rate of the next step. If ``lr`` changes
        later, the two forms give different paths.

        Parameters
        ----------
        state_dict : mapping
            What :meth:`state_dict` of an :class:`SGD` gave.
        form : {"torch", "classic"}
            The form to convert to.

        Raises
        ------
        ValueError
            If the state has dampening, which the classic form does not have; or if the state is of the classic form,
            and the learning rate is 0 or a function that was not saved.

        Notes
        -----
        Both forms as in I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
        """
        if form not in _checks.FORMS:
            raise ValueError(f"form must be 'torch' or 'classic', got {form!r}")
        if state_dict.get("optimizer") != "SGD":
            raise ValueError(f"state_dict is of {state_dict.get('optimizer')!r}; only SGD has forms")
        groups = []
        for i, group in enumerate(state_dict["groups"]):
            options = dict(group["options"])
            scales, params = expanded_lr_scale(options["lr_scale"], len(group["params"])), []
            if form == "classic" and options["dampening"] != 0:
                raise ValueError(
                    f"group {i} has dampening={options['dampening']!r}, which the classic form does not know"
                )
            lr = loaded_rate(options["lr"], None)
            rate = rate_at(lr, group["steps"]) if callable(lr) else lr
            for entry, scale in zip(group["params"], scales, strict=True):
                state = {name: np.array(x) for name, x in entry["state"].items()}
                if options["form"] != form and "velocity" in state and entry["begun"]:
                    factor = -rate * np.asarray(scale, np.float64)
                    if form == "torch" and not np.all(factor):
                        raise ValueError(
                            f"group {i} has a learning rate of 0, at which a classic velocity says nothing"
                        )
                    v = state["velocity"]
                    v[...] = v * factor if form == "classic" else v / factor
                params.append({**entry, "state": state})
            groups.append({**group, "options": {**options, "form": form}, "params": params})
        return {**state_dict, "groups": groups}
