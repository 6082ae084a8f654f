"""One update of many tensors, for those who keep the states themselves: offload engines, sharded optimizers.

Each function takes lists of tensors, one item for each parameter, and updates the parameters and states in place. It is
one call, which releases the GIL. A gradient that is None leaves its parameter out. For all functions:

- The tensors are float32, float64, bfloat16 or float16, on the CPU, and fill their memory: they are contiguous,
  ``channels_last``, a slice of a flat buffer, or have another order of the axes. A parameter's gradient and states have
  its shape and order in memory. Tensors without elements are fine.
- Each tensor has a dtype of its own. An update is computed in float64 if the parameter is float64, else in float32.
  Narrower numbers are widened exactly; what is written is rounded once. Only beside a float64 parameter may gradient or
  states be float64.
- ``grad_scale`` is what the gradients were multiplied by, as a GradScaler's scale: a number or a tensor of one element.
  The update divides by it (it multiplies by ``1 / grad_scale``), in the same pass. The gradients do not change.
- ``copies`` has a tensor, or None, for each parameter, of any of these dtypes: the update also writes the new parameter
  there, in the same pass. A parameter without a gradient is not written.
- ``steps`` is the number of this step, from 1: one int, or an int for each parameter. Or it has a tensor of one element
  for each parameter, which keeps the number of steps made before, as ``state["step"]`` of PyTorch's optimizers does; it
  is incremented.
- ``threads`` is how many threads may be used; None means ``torch.get_num_threads()``.
- Everything is checked first. After an error nothing has changed. A TypeError or ValueError names the tensor that is
  wrong, a :class:`gdm.OverlapError` the two that share memory.

The formulas are PyTorch's, as written out in :mod:`gdm.reference`, and the results have the same bits.

>>> import torch
>>> from gdm.torch import functional
>>> shard = torch.linspace(-1.0, 1.0, 5)
>>> exp_avg, exp_avg_sq = torch.zeros(5), torch.zeros(5)
>>> for step in range(1, 4):
...     functional.adamw([shard], [2 * shard], [exp_avg], [exp_avg_sq], step, lr=0.1)
>>> shard
tensor([-0.6989, -0.2037,  0.0000,  0.2037,  0.6989])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import Options
from .lists import Lists, update_lists
from .tensors import connect

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "ademamix",
    "asgd",
    "lamb",
    "lars",
    "lion",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "signum",
]

Tensors = Sequence[torch.Tensor]
Grads = Sequence["torch.Tensor | None"]
Copies = Sequence["torch.Tensor | None"]
Steps = int | Sequence[int] | Sequence[torch.Tensor]

connect()


def sgd(
    params: Tensors,
    grads: Grads,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """Gradient descent, with momentum if it is not 0: ``torch.optim.SGD``. See :mod:`gdm.torch.functional`.

    ``momentum_buffers`` are needed with ``momentum``. With ``first`` they are set to the gradients, without dampening,
    as PyTorch does in a parameter's first step.
    """
    options: Options = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "decoupled_weight_decay": False}
    lists = Lists(params, grads, {"momentum_buffers": momentum_buffers}, copies)
    if not momentum:
        update_lists("sgd", lists, options, grad_scale, threads, unused={"momentum_buffers": "momentum"})
        return
    options |= {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "form": "torch"}
    update_lists("momentum", lists, options, grad_scale, threads, first=first)


def adagrad(
    params: Tensors,
    grads: Grads,
    state_sums: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adagrad``. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
    lists = Lists(params, grads, {"state_sums": state_sums}, copies, steps)
    update_lists("adagrad", lists, options, grad_scale, threads)


def rmsprop(
    params: Tensors,
    grads: Grads,
    square_avgs: Tensors,
    grad_avgs: Tensors | None = None,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.RMSprop``. See :mod:`gdm.torch.functional`.

    ``grad_avgs`` are needed with ``centered``, ``momentum_buffers`` with ``momentum``.
    """
    options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    options |= {"centered": centered, "maximize": maximize}
    states = {"square_avgs": square_avgs, "grad_avgs": grad_avgs, "momentum_buffers": momentum_buffers}
    unused = {} if centered else {"grad_avgs": "centered"}
    unused |= {} if momentum else {"momentum_buffers": "momentum"}
    update_lists("rmsprop", Lists(params, grads, states, copies), options, grad_scale, threads, unused=unused)


def adam(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adam``. See :mod:`gdm.torch.functional`. ``max_exp_avg_sqs`` are needed with ``amsgrad``."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    options |= {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    unused = {} if amsgrad else {"max_exp_avg_sqs": "amsgrad"}
    update_lists("adam", Lists(params, grads, states, copies, steps), options, grad_scale, threads, unused=unused)


def adamw(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.AdamW``. See :mod:`gdm.torch.functional`. ``max_exp_avg_sqs`` are needed with ``amsgrad``."""
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        max_exp_avg_sqs,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        grad_scale=grad_scale,
        copies=copies,
        threads=threads,
    )


def nadam(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    mu_products: Tensors,
    steps: Steps,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.NAdam``. See :mod:`gdm.torch.functional`.

    ``mu_products`` are tensors of one element, which begin with 1 and are updated, too.
    """
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
    options |= {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    lists = Lists(params, grads, states, copies, steps, {"mu_products": mu_products})
    update_lists("nadam", lists, options, grad_scale, threads)


def radam(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.RAdam``. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
    options |= {"decoupled_weight_decay": decoupled_weight_decay}
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    update_lists("radam", Lists(params, grads, states, copies, steps), options, grad_scale, threads)


def adamax(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_infs: Tensors,
    steps: Steps,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adamax``. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
    states = {"exp_avgs": exp_avgs, "exp_infs": exp_infs}
    update_lists("adamax", Lists(params, grads, states, copies, steps), options, grad_scale, threads)


def adadelta(
    params: Tensors,
    grads: Grads,
    square_avgs: Tensors,
    acc_deltas: Tensors,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.Adadelta``. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
    states = {"square_avgs": square_avgs, "acc_deltas": acc_deltas}
    update_lists("adadelta", Lists(params, grads, states, copies), options, grad_scale, threads)


def lion(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """Lion, as :class:`gdm.Lion`. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
    update_lists("lion", Lists(params, grads, {"exp_avgs": exp_avgs}, copies), options, grad_scale, threads)


def signum(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """Signum, as :class:`gdm.Signum`. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    options |= {"decoupled_weight_decay": decoupled_weight_decay}
    update_lists("signum", Lists(params, grads, {"exp_avgs": exp_avgs}, copies), options, grad_scale, threads)


def rprop(
    params: Tensors,
    grads: Grads,
    prevs: Tensors,
    sizes: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.Rprop``. See :mod:`gdm.torch.functional`.

    ``sizes`` are the present step sizes, ``state["step_size"]`` of PyTorch's optimizer. Step 1 sets them to ``lr``.
    """
    options = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "maximize": maximize}
    lists = Lists(params, grads, {"prevs": prevs, "sizes": sizes}, copies, steps)
    update_lists("rprop", lists, options, grad_scale, threads)


def asgd(
    params: Tensors,
    grads: Grads,
    axs: Tensors,
    etas: Tensors,
    mus: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """``torch.optim.ASGD``. See :mod:`gdm.torch.functional`.

    ``etas`` and ``mus`` are tensors of one element, which are updated, too. They begin with ``lr`` (or 0, which means
    the same in step 1) and 1.
    """
    options = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay, "maximize": maximize}
    lists = Lists(params, grads, {"axs": axs}, copies, steps, {"etas": etas, "mus": mus})
    update_lists("asgd", lists, options, grad_scale, threads)


def ademamix(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avgs_slow: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 5.0,
    t_alpha: float = 0.0,
    t_beta3: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """AdEMAMix, as :class:`gdm.AdEMAMix`. See :mod:`gdm.torch.functional`."""
    options = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps}
    options |= {"weight_decay": weight_decay, "maximize": maximize}
    states = {"exp_avgs": exp_avgs, "exp_avgs_slow": exp_avgs_slow, "exp_avg_sqs": exp_avg_sqs}
    update_lists("ademamix", Lists(params, grads, states, copies, steps), options, grad_scale, threads)


def lars(
    params: Tensors,
    grads: Grads,
    momentum_buffers: Tensors,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    adapt: bool = True,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """LARS, as :class:`gdm.LARS`. See :mod:`gdm.torch.functional`.

    Each tensor of ``params`` must be a whole parameter, since the learning rate depends on its norm.
    """
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
    options |= {"adapt": adapt, "maximize": maximize}
    lists = Lists(params, grads, {"momentum_buffers": momentum_buffers}, copies)
    update_lists("lars", lists, options, grad_scale, threads)


def lamb(
    params: Tensors,
    grads: Grads,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    adapt: bool = True,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """LAMB, as :class:`gdm.LAMB`. See :mod:`gdm.torch.functional`.

    Each tensor of ``params`` must be a whole parameter, since the learning rate depends on its norm.
    """
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt, "maximize": maximize}
    lists = Lists(params, grads, {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}, copies, steps)
    update_lists("lamb", lists, options, grad_scale, threads)


def schedule_free_sgd(
    params: Tensors,
    grads: Grads,
    zs: Tensors,
    weight_sums: Tensors,
    lr_maxs: Tensors,
    steps: Steps,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """Schedule-Free gradient descent, as :class:`gdm.ScheduleFreeSGD`. See :mod:`gdm.torch.functional`.

    In step 1 ``zs`` are set to the parameters. ``weight_sums`` and ``lr_maxs`` are tensors of one element, best of
    float64, which begin with 0 and are updated, too. The average is ``param.lerp(z, 1 - 1 / momentum)``.
    """
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r}
    options |= {"weight_lr_power": weight_lr_power, "maximize": maximize}
    lists = Lists(params, grads, {"zs": zs}, copies, steps, {"weight_sums": weight_sums, "lr_maxs": lr_maxs})
    update_lists("schedule_free_sgd", lists, options, grad_scale, threads)


def schedule_free_adamw(
    params: Tensors,
    grads: Grads,
    zs: Tensors,
    exp_avg_sqs: Tensors,
    weight_sums: Tensors,
    lr_maxs: Tensors,
    steps: Steps,
    *,
    lr: float = 0.0025,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """Schedule-Free AdamW, as :class:`gdm.ScheduleFreeAdamW`. See :func:`schedule_free_sgd`."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r}
    options |= {"weight_lr_power": weight_lr_power, "maximize": maximize}
    states, numbers = {"zs": zs, "exp_avg_sqs": exp_avg_sqs}, {"weight_sums": weight_sums, "lr_maxs": lr_maxs}
    update_lists(
        "schedule_free_adamw", Lists(params, grads, states, copies, steps, numbers), options, grad_scale, threads
    )


def muon(
    params: Tensors,
    grads: Grads,
    momentum_buffers: Tensors,
    updates: Tensors,
    *,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    nesterov: bool = True,
    maximize: bool = False,
    prepare: bool = False,
    grad_scale: float | torch.Tensor | None = None,
    copies: Copies | None = None,
    threads: int | None = None,
) -> None:
    """The two passes of Muon, as :func:`gdm.muon`. See :mod:`gdm.torch.functional`.

    The first call, with ``prepare``, writes into ``updates`` what is to be orthogonalized, and nothing else. Replace
    that by :func:`gdm.torch.newton_schulz` of it, for example. The second call, with the same gradients, changes
    ``params`` and ``momentum_buffers``. ``updates`` should be float32 (float64 beside float64 parameters): narrower
    ones round what they hold.
    """
    options: Options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    options |= {"maximize": maximize, "prepare": prepare}
    states = {"momentum_buffers": momentum_buffers, "updates": updates}
    update_lists("muon", Lists(params, grads, states, copies), options, grad_scale, threads)
