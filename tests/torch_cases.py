"""For tests of gdm.torch's optimizers: options to try each class with, gradients, and twins that step side by side."""

from __future__ import annotations

import copy
import math

import pytest

import gdm

torch = pytest.importorskip("torch", reason="NOT TESTED: gdm.torch's optimizers; there is no torch here")

torch.set_num_threads(1)  # its threads would only wait for each other, on tensors of this size

# Those that torch.optim has, and those that it does not have.
TORCHS = ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop", "ASGD"]
OWN = ["Lion", "Signum", "AdEMAMix", "LARS", "LAMB", "ScheduleFreeSGD", "ScheduleFreeAdamW"]
CLASSES = [*TORCHS, *OWN]
FUSED = ["SGD", "Adagrad", "Adam", "AdamW"]
# The classes whose state has a "step", and those whose update depends on it.
COUNTS = [name for name in CLASSES if name not in ("SGD", "Lion", "Signum", "LARS")]
NUMBERED = [name for name in COUNTS if name not in ("RMSprop", "Adadelta")]
WITH_EPS = [name for name in COUNTS if name not in ("Rprop", "ASGD", "ScheduleFreeSGD")]
SCALARS = ["mu_product", "eta", "mu", "weight_sum", "lr_max"]  # numbers in a state, beside "step"
A_STATE = {"SGD": "momentum_buffer", "Adagrad": "sum", "RMSprop": "square_avg"}
A_STATE |= {"Adadelta": "square_avg", "Rprop": "prev", "ASGD": "ax", "LARS": "momentum_buffer"}
A_STATE |= {"ScheduleFreeSGD": "z", "ScheduleFreeAdamW": "z"}
A_STATE |= {name: "exp_avg" for name in CLASSES if name not in A_STATE}  # one of each class
# Options that switch each kernel and each state on and off.
OPTIONS = {
    "SGD": [
        {},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "maximize": True},
        {"momentum": 0.9},
    ],
    "Adagrad": [
        {},
        {"lr_decay": 0.05, "weight_decay": 0.1, "maximize": True},
        {"initial_accumulator_value": 0.25, "eps": 1e-4},
    ],
    "RMSprop": [
        {},
        {"centered": True, "weight_decay": 0.1},
        {"momentum": 0.7, "alpha": 0.8, "maximize": True},
        {"centered": True, "momentum": 0.5, "eps": 1e-3},
    ],
    "Adam": [
        {},
        {"amsgrad": True, "betas": (0.5, 0.9), "maximize": True},
        {"weight_decay": 0.1, "eps": 1e-3},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.2, "maximize": True}],
    "NAdam": [
        {},
        {"momentum_decay": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1},
        {"betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True},
    ],
    "RAdam": [
        {},
        {"betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 1e-3},
    ],
    "Adamax": [{}, {"betas": (0.5, 0.9), "maximize": True}, {"weight_decay": 0.1, "eps": 1e-3}],
    "Adadelta": [{}, {"rho": 0.5, "maximize": True}, {"weight_decay": 0.1, "eps": 1e-3}],
    "Lion": [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9), "maximize": True}],
    "Signum": [
        {},
        {"momentum": 0.5, "weight_decay": 0.1, "maximize": True},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "Rprop": [{}, {"etas": (0.25, 1.75), "step_sizes": (0.001, 0.1), "maximize": True}],
    "ASGD": [
        {},
        {"t0": 1.5, "lambd": 0.5, "alpha": 1.5},
        {"t0": 0.0, "weight_decay": 0.1, "lambd": 0.1, "maximize": True},
    ],
    "LARS": [
        {"trust_coefficient": 0.1},
        {"trust_coefficient": 0.1, "weight_decay": 0.1, "momentum": 0.5, "maximize": True},
        {"adapt": False, "weight_decay": 0.1},
    ],
    "LAMB": [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9), "maximize": True}, {"adapt": False, "weight_decay": 0.1}],
    "AdEMAMix": [
        {},
        {"weight_decay": 0.1, "betas": (0.5, 0.7, 0.9), "alpha": 2.0, "maximize": True},
        {"t_alpha": 4.0, "t_beta3": 6.0, "eps": 1e-3},
        {"t_beta3": 6.0, "betas": (0.0, 0.9, 0.99)},
    ],
    "ScheduleFreeSGD": [{}, {"momentum": 0.5, "weight_decay": 0.1, "warmup_steps": 4, "r": 0.5, "maximize": True}],
    "ScheduleFreeAdamW": [{}, {"betas": (0.8, 0.9), "weight_decay": 0.1, "warmup_steps": 4, "weight_lr_power": 0.5}],
}
# One set of options for each class, in which every state is in use.
FULL = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adagrad": {"lr_decay": 0.05, "weight_decay": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5, "weight_decay": 0.1},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"amsgrad": True},
    "NAdam": {"weight_decay": 0.1},
    "RAdam": {"weight_decay": 0.1},
    "Adamax": {"weight_decay": 0.1},
    "Adadelta": {"weight_decay": 0.1},
    "Lion": {"weight_decay": 0.1},
    "Signum": {"weight_decay": 0.1},
    "Rprop": {},
    "ASGD": {"weight_decay": 0.1, "t0": 1.0},
    "LARS": {"weight_decay": 0.1, "trust_coefficient": 0.1},
    "LAMB": {"weight_decay": 0.1},
    "AdEMAMix": {"weight_decay": 0.1, "t_alpha": 4.0, "t_beta3": 6.0},
    "ScheduleFreeSGD": {"weight_decay": 0.1},
    "ScheduleFreeAdamW": {"weight_decay": 0.1},
}
# States in which gradients may cancel each other.
AVERAGES = ["momentum_buffer", "exp_avg", "exp_avg_slow", "grad_avg", "z"]
SHAPES = [(7,), (3, 5), (), (40, 3)]
DTYPES = {"f32": torch.float32, "f64": torch.float64}
# How far two paths may be apart, compared with the largest element of the tensor. PyTorch's for-loop rounds narrow
# numbers after each operation.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 3e-5,
    torch.bfloat16: 0.05,
    torch.float16: 0.05,
    torch.complex64: 3e-5,
    torch.complex128: 1e-11,
}

every_class = pytest.mark.parametrize("name", CLASSES)
every_class_of_torchs = pytest.mark.parametrize("name", TORCHS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
every_case = pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{k}") for n in CLASSES for k, o in enumerate(OPTIONS[n])]
)
every_case_of_torchs = pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{k}") for n in TORCHS for k, o in enumerate(OPTIONS[n])]
)


# ---- what torch does not have, in torch's operations ----


class _ByHand(torch.optim.Optimizer):
    state_name = "exp_avg"

    def __init__(self, params, lr, **options) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "maximize": False, **options})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault(self.state_name, torch.zeros_like(p))
                    self.update(p, -p.grad if group["maximize"] else p.grad, m, group)
        return loss


class LionByHand(_ByHand):
    """Algorithm 2 of Chen et al., 2023."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False) -> None:
        super().__init__(params, lr, betas=betas, weight_decay=weight_decay, maximize=maximize)

    @staticmethod
    def update(p, g, m, group) -> None:
        beta1, beta2 = group["betas"]
        direction = (m * beta1 + g * (1 - beta1)).sign()
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        m.mul_(beta2).add_(g, alpha=1 - beta2)


class SignumByHand(_ByHand):
    """Algorithm 2 of Bernstein et al., 2018, with decay."""

    def __init__(
        self, params, lr=1e-3, momentum=0.9, weight_decay=0.0, *, decoupled_weight_decay=False, maximize=False
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    @staticmethod
    def update(p, g, m, group) -> None:
        if group["decoupled_weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        else:
            g = g + group["weight_decay"] * p
        m.mul_(group["momentum"]).add_(g, alpha=1 - group["momentum"])
        p.add_(m.sign(), alpha=-group["lr"])


class _CountedByHand(torch.optim.Optimizer):
    states: tuple[str, ...]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["step"] = torch.zeros((), dtype=torch.get_default_dtype())
                        state |= {key: torch.zeros_like(p) for key in self.states}
                    state["step"] += 1
                    self.update(p, -p.grad if group["maximize"] else p.grad, state, group)
        return loss


class AdEMAMixByHand(_CountedByHand):
    """Algorithm 1 of Pagliardini et al., 2024, with the schedules of its section 3 in their other forms."""

    states = ("exp_avg", "exp_avg_slow", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999, 0.9999),
        alpha=5.0,
        t_alpha=0.0,
        t_beta3=0.0,
        eps=1e-8,
        weight_decay=0.0,
        *,
        maximize=False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        super().__init__(params, {**options, "eps": eps, "weight_decay": weight_decay, "maximize": maximize})

    @staticmethod
    def update(p, g, state, group) -> None:
        t = state["step"].item()
        beta1, beta2, beta3 = group["betas"]
        alpha = group["alpha"]
        if group["t_alpha"]:
            alpha = min(t * alpha / group["t_alpha"], alpha)
        if group["t_beta3"]:  # the half-life, in steps, is between that of both betas
            short, long = (math.log(0.5) / math.log(beta) if beta else 0.0 for beta in (beta1, beta3))
            x = t / group["t_beta3"]
            beta3 = min(0.5 ** (1 / ((1 - x) * short + x * long)), beta3) if x < 1 else beta3
        m, slow, v = (state[key] for key in ("exp_avg", "exp_avg_slow", "exp_avg_sq"))
        m.copy_(beta1 * m + (1 - beta1) * g)
        slow.copy_(beta3 * slow + (1 - beta3) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        step = (m / (1 - beta1**t) + alpha * slow) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        p.sub_(group["lr"] * (step + group["weight_decay"] * p))


class LARSByHand(_ByHand):
    """Algorithm 1 of You, Gitman and Ginsburg, 2017."""

    state_name = "momentum_buffer"

    def __init__(
        self, params, lr=1.0, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001, adapt=True, *, maximize=False
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, lr, **options, adapt=adapt, maximize=maximize)

    @staticmethod
    def update(p, g, v, group) -> None:
        decay, norm = group["weight_decay"], torch.linalg.vector_norm
        adapt = group["adapt"] and norm(p) > 0 and norm(g) > 0
        rate = group["trust_coefficient"] * norm(p) / (norm(g) + decay * norm(p)) if adapt else 1.0
        v.mul_(group["momentum"]).add_(group["lr"] * rate * (g + decay * p))
        p.sub_(v)


class LAMBByHand(_CountedByHand):
    """Algorithm 2 of You et al., 2020, with the identity as its scaling function."""

    states = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, adapt=True, *, maximize=False
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "adapt": adapt, "maximize": maximize})

    @staticmethod
    def update(p, g, state, group) -> None:
        t, (beta1, beta2) = state["step"].item(), group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.copy_(beta1 * m + (1 - beta1) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        ratio = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"]) + group["weight_decay"] * p
        norm = torch.linalg.vector_norm
        adapt = group["adapt"] and norm(p) > 0 and norm(ratio) > 0
        p.sub_(group["lr"] * (norm(p) / norm(ratio) if adapt else 1.0) * ratio)


class ScheduleFreeSGDByHand(torch.optim.Optimizer):
    """Algorithm 1 of Defazio et al., 2024, with x computed from y and z."""

    def __init__(
        self,
        params,
        lr=1.0,
        momentum=0.9,
        weight_decay=0,
        warmup_steps=0,
        r=0.0,
        weight_lr_power=2.0,
        *,
        maximize=False,
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r}
        options |= {"weight_lr_power": weight_lr_power, "maximize": maximize, "train_mode": True}
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, -p.grad if group["maximize"] else p.grad, self.state[p], group)
        return loss

    def load_state_dict(self, state_dict) -> None:
        """Without PyTorch's rounding of the sums to the parameters' dtype."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for p, number in zip(params, numbers, strict=True):
            kept = state_dict["state"].get(number, {})
            self.state[p].update({key: kept[key].double() for key in ("weight_sum", "lr_max") if key in kept})

    def update(self, y, g, state, group) -> None:
        if "z" not in state:
            state["step"] = torch.tensor(0.0)
            state.update({key: torch.tensor(0.0, dtype=torch.float64) for key in ("weight_sum", "lr_max")})
        if not state["step"]:
            state["z"] = y.clone()
        state["step"] += 1
        t = state["step"].item()
        lr = float(group["lr"]) * min(1.0, t / group["warmup_steps"] if group["warmup_steps"] else 1.0)
        state["lr_max"].fill_(max(lr, state["lr_max"].item()))
        weight = t ** group["r"] * state["lr_max"].item() ** group["weight_lr_power"]
        state["weight_sum"] += weight
        c = weight / state["weight_sum"].item() if state["weight_sum"] else 0.0
        share = self.share(group)
        direction = self.direction(y, g, state, group)
        x = y + (1 - 1 / share) * (state["z"] - y)
        state["z"] -= lr * direction
        x += c * (state["z"] - x)
        y.copy_((1 - share) * state["z"] + share * x)

    @staticmethod
    def share(group) -> float:
        return group["momentum"]

    @staticmethod
    def direction(y, g, state, group):
        return g + group["weight_decay"] * y


class ScheduleFreeAdamWByHand(ScheduleFreeSGDByHand):
    """The same with Adam's denominator, and the decay at y."""

    def __init__(self, params, lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, **options) -> None:
        super().__init__(params, lr, 0.5, weight_decay, **options)
        for group in (self.defaults, *self.param_groups):
            del group["momentum"]
            group.update({"betas": betas, "eps": eps, **{k: x for k, x in group.items() if k in ("betas", "eps")}})

    @staticmethod
    def share(group) -> float:
        return group["betas"][0]

    @staticmethod
    def direction(y, g, state, group):
        beta2 = group["betas"][1]
        if "exp_avg_sq" not in state:
            state["exp_avg_sq"] = torch.zeros_like(y)
        state["exp_avg_sq"].mul_(beta2).add_(g * g, alpha=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2 ** state["step"].item())).sqrt()
        return g / (root + group["eps"]) + group["weight_decay"] * y


def torchs_class(name: str):
    """The class to compare with."""
    own = {
        "Lion": LionByHand,
        "Signum": SignumByHand,
        "AdEMAMix": AdEMAMixByHand,
        "LARS": LARSByHand,
        "LAMB": LAMBByHand,
        "ScheduleFreeSGD": ScheduleFreeSGDByHand,
        "ScheduleFreeAdamW": ScheduleFreeAdamWByHand,
    }
    return own.get(name) or getattr(torch.optim, name)


# ---- problems ----


def tensor(shape, seed: int, dtype=torch.float64):
    """Random numbers, none of them near 0: there the first steps of some methods depend on the last bit."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (x.sign() * (x.abs() + 0.1)).to(torch.float64)
    if dtype.is_complex:
        return torch.complex(x, tensor(shape, seed + 1000)).to(dtype)
    return x.to(dtype)


def parameters(dtype=torch.float64, shapes=SHAPES, seed: int = 0):
    return [torch.nn.Parameter(tensor(shape, seed + k, dtype)) for k, shape in enumerate(shapes)]


def clones(params):
    """Parameters of the same values, dtypes and strides; tensors that are not parameters stay such."""
    copies = []
    for p in params:
        x = p.detach().clone(memory_format=torch.preserve_format)
        if x.stride() != p.stride():
            memory = 1 + sum(s * (n - 1) for s, n in zip(p.stride(), p.shape, strict=True)) if p.numel() else 0
            x = torch.zeros(memory, dtype=p.dtype).as_strided(p.shape, p.stride()).copy_(p.detach())
        copies.append(torch.nn.Parameter(x) if isinstance(p, torch.nn.Parameter) else x.requires_grad_(p.requires_grad))
    return copies


def give_gradients(step: int, *lists, absent=lambda step, i: False, seed: int = 100) -> None:
    """The same gradient for the parameters of all lists; ``absent`` says which are to have none."""
    for params in lists:
        for i, p in enumerate(params):
            p.grad = None if absent(step, i) else tensor(p.shape, seed + 37 * step + i, p.dtype)


def come_and_go(step: int, i: int) -> bool:
    """Gradients that are missing in some steps for some parameters; one arrives for the first time in the fifth."""
    return step < 4 if i == 2 else (step + i) % 4 == 3


# ---- twins ----


class Twins:
    """gdm's optimizer and torch's, with parameters of the same values; torch's makes its steps by its for-loop.

    ``make`` makes the first argument of the classes from a list of parameters: groups, names.
    """

    def __init__(self, name, params=None, options=None, *, make=lambda params: params, ours=None) -> None:
        self.name = name
        options = {"lr": 0.01, **(options or {})}
        self.params = parameters() if params is None else params
        self.other_params = clones(self.params)
        for_loop = {} if name in OWN else {"foreach": False, **({"fused": False} if name in FUSED else {})}
        our_options = {**copy.deepcopy(options), **for_loop, **(ours or {})}
        self.ours = getattr(gdm.torch, name)(make(self.params), **our_options)
        self.theirs = torchs_class(name)(make(self.other_params), **{**copy.deepcopy(options), **for_loop})

    def both(self):
        return (self.ours, self.params), (self.theirs, self.other_params)

    def steps(self, numbers, absent=lambda step, i: False) -> None:
        """Steps of both, compared after each."""
        for step in numbers:
            give_gradients(step, self.params, self.other_params, absent=absent)
            self.ours.step()
            self.theirs.step()
            self.assert_close(f"after step {step}")

    def assert_close(self, where: str = "", *, tolerance: float | None = None) -> None:
        for i, (p, q) in enumerate(zip(self.params, self.other_params, strict=True)):
            assert_close(p, q, f"parameter {i} {where}", tolerance=tolerance, least=0.1)
        assert_close_states(self.ours, self.theirs, where, tolerance=tolerance)


def assert_close(x, y, what: str = "", *, tolerance: float | None = None, least: float = 0.0) -> None:
    """Like shapes and dtypes, and elements that differ by no more than the tolerance times the largest.

    ``least`` is a magnitude that what the elements are computed from has at least: a sum may be near 0.
    """
    assert (x.dtype, x.shape) == (y.dtype, y.shape), what
    x, y = x.detach(), y.detach()
    if not x.numel():
        return
    wide = torch.complex128 if x.is_complex() else torch.float64
    difference = (x.to(wide) - y.to(wide)).abs().max().item()
    scale = max(y.to(wide).abs().max().item(), least)
    tolerance = TOLERANCE[x.dtype] if tolerance is None else tolerance
    assert math.isfinite(scale), f"{what}: not a finite number"
    assert difference <= tolerance * scale, f"{what}: {difference / scale if scale else difference:.2g} apart"


def assert_close_states(ours, theirs, where: str = "", *, tolerance: float | None = None) -> None:
    """State for state: the same keys, dtypes and shapes, the same counts, values that are close."""
    listed = [[opt.state.get(p, {}) for group in opt.param_groups for p in group["params"]] for opt in (ours, theirs)]
    for i, (mine, wanted) in enumerate(zip(*listed, strict=True)):
        present, expected = ({k for k, x in state.items() if x is not None} for state in (mine, wanted))
        assert present == expected, f"states of parameter {i} {where}"
        for key in expected:
            what = f"{key} of parameter {i} {where}"
            if key == "step":
                assert isinstance(mine[key], torch.Tensor), what
                assert (mine[key].item(), mine[key].shape) == (wanted[key].item(), wanted[key].shape), what
                continue
            least = 0.1 if key in AVERAGES else 0.0
            assert_close(mine[key], wanted[key], what, tolerance=tolerance, least=least)


def assert_same_tensors(xs, ys, what: str = "") -> None:
    """Equal to the bit, with NaN equal to NaN."""
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if x is None or y is None:
            assert x is y, f"{what} {i}"
            continue
        assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{what} {i}"
        x, y = x.detach().to_dense(), y.detach().to_dense()
        if x.is_complex():
            x, y = torch.view_as_real(x.resolve_conj()), torch.view_as_real(y.resolve_conj())
        same = ((x == y) & (x.signbit() == y.signbit())) | (x.isnan() & y.isnan())
        assert bool(same.all()), f"{what} {i}: {x} is not {y}"


def flat_state(optimizer):
    """Every tensor of an optimizer's state, in a fixed order."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            found += [state[key] for key in sorted(state)]
    return found


def everything(optimizer):
    """A copy of all that a step may change: parameters, states, gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*params, *flat_state(optimizer), *(p.grad for p in params)]
    return [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in tensors]
