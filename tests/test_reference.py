"""The specification itself: against the formulas in exact arithmetic, and against PyTorch's documented algorithm."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest

import gdm
from gdm import _checks
from gdm.optimizer.state import SQUARES, WORK
from gdm.reference import _ademamix, formula
from support import DTYPES, RULES, buffers, call, describe, function, names, numbers, option_cases, plain


class Rounded:
    """A number whose every operation is done exactly and then rounded once to a dtype, to nearest, ties to even."""

    def __init__(self, value, dtype):
        self.dtype = dtype
        self.value = value if isinstance(value, Fraction) else Fraction(float(value))

    def _make(self, exact: Fraction) -> Rounded:
        return Rounded(nearest(exact, self.dtype), self.dtype)

    def __add__(self, other):
        return self._make(self.value + other.value)

    def __sub__(self, other):
        return self._make(self.value - other.value)

    def __mul__(self, other):
        return self._make(self.value * other.value)

    def __truediv__(self, other):
        return self._make(self.value / other.value)

    def __neg__(self):
        return Rounded(-self.value, self.dtype)

    def __abs__(self):
        return Rounded(abs(self.value), self.dtype)

    def sqrt(self):
        """To far more digits than any dtype has, and a last one that tells whether more follow."""
        scale = 4 ** (2 * 1100)
        whole = math.isqrt(int(self.value * scale))
        more = 0 if Fraction(whole**2, scale) == self.value else Fraction(1, 2)
        return self._make(Fraction(whole + more) / math.isqrt(scale))


def nearest(exact: Fraction, dtype) -> Fraction:
    """Rounded by integer arithmetic alone."""
    if exact == 0:
        return Fraction(0)
    info = np.finfo(dtype)
    exponent = math.floor(math.log2(abs(exact)))
    while Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(exact):
        exponent += 1
    unit = Fraction(2) ** (max(exponent, info.minexp) - info.nmant)
    return round(exact / unit) * unit  # round() takes ties to the even integer


def double(exact: Fraction) -> Fraction:
    return nearest(exact, np.float64)


def radam_rate(lr, betas, step, **others):
    """The factor of the direction, and whether the step is rectified."""

    def number(x):
        return Rounded(Fraction(x), np.float64)

    powers = [number(formula.power(betas[0], step)), number(float(Fraction(betas[1]) ** step))]
    one, two, four = number(1), number(2), number(4)
    corrections = [one - x for x in powers]
    rho_inf = two / (one - number(betas[1])) - one
    rho = rho_inf - two * number(step) * powers[1] / corrections[1]
    rate = number(lr) / corrections[0]
    if rho.value <= 5:
        return rate.value, False
    r = ((rho - four) * (rho - two) * rho_inf / ((rho_inf - four) * (rho_inf - two) * rho)).sqrt()
    return (rate * (r * corrections[1].sqrt())).value, True


def exact_update(rule, arrays, options, dtype):
    """One update by the formulas as the documentation gives them, element by element."""

    def once(number):
        return Rounded(nearest(Fraction(number), dtype), dtype)

    def sign(number):
        return once((number.value > 0) - (number.value < 0))

    lr, decay = Fraction(options["lr"]), Fraction(options.get("weight_decay", 0))
    decoupled = rule in ("lion", "ademamix", "muon") or options.get("decoupled_weight_decay", False)
    shrink = double(lr * decay) if decoupled else Fraction(0)
    rate, (now, ahead) = lr, (None, None)
    if rule == "asgd":
        rate = Fraction(0.7)
        shrink = double(rate * Fraction(options["lambd"]))
    if "betas" in options:
        betas = [*options["betas"]]
        if rule == "ademamix":
            betas[2] = _ademamix._beta3(options["step"], options["betas"], options["t_beta3"])
        beta1, beta2, *_ = (Fraction(x) for x in betas)
        rests = [once(double(1 - Fraction(x))) for x in betas]
        shares = [once(Fraction(x)) for x in betas]
    if rule == "adagrad":
        rate = double(lr / double(1 + double((options["step"] - 1) * Fraction(options["lr_decay"]))))
    if rule in ("adam", "nadam", "lamb", "ademamix"):
        powers = [Fraction(formula.power(float(beta), options["step"])) for beta in (beta1, beta2)]
        left = Rounded(double(1 - powers[1]), np.float64).sqrt()
        root = once(double(1 / left.value))
    if rule in ("adam", "ademamix"):
        rate = double(lr / double(1 - powers[0]))
    if rule == "radam":
        rate, rectified = radam_rate(**options)
    if rule == "adamax":
        rate = double(lr / double(1 - Fraction(formula.power(float(beta1), options["step"]))))
    if rule == "lamb":
        corrected = once(double(1 / double(1 - powers[0])))
    if rule == "ademamix":
        weight, step, warmup = (Fraction(options[name]) for name in ("alpha", "step", "t_alpha"))
        if step < warmup:
            weight = double(weight * double(step / warmup))
        weight = once(double(weight * double(1 - powers[0])))
    if rule == "nadam":
        momenta = []
        for t in (options["step"], options["step"] + 1):
            power = Fraction(formula.power_of_096(float(double(t * Fraction(options["momentum_decay"])))))
            momenta.append(double(beta1 * double(1 - power / 2)))
        product = double(Fraction(0.7) * momenta[0])
        now = once(double(double(1 - momenta[0]) / double(1 - product)))
        ahead = once(double(momenta[1] / double(1 - double(product * momenta[1]))))
    if rule.startswith("schedule_free"):
        step, warmup = options["step"], Fraction(options["warmup_steps"])
        rate = double(lr * double(step / warmup)) if step < warmup else lr
        powers = (step, options["r"]), (float(max(Fraction(0.7), rate)), options["weight_lr_power"])
        weight = double(math.prod(Fraction(formula._weight_power(*x)) for x in powers))
        newest = double(weight / double(Fraction(0.7) + weight))
        kept = beta1 if "betas" in options else Fraction(options["momentum"])
        step_share = once(double(1 - double(kept * double(1 - newest))))
        newest = once(newest)
    if rule == "schedule_free_adamw":
        left = Rounded(double(1 - Fraction(formula.power(float(beta2), step))), np.float64).sqrt()
        root = once(double(1 / left.value))
    eps, mu = once(options.get("eps", 0)), once(options.get("momentum", 0))

    def lamb(p, g, m, v):
        m, v = shares[0] * m + rests[0] * g, shares[1] * v + rests[1] * (g * g)
        u = (m * corrected) / (v.sqrt() * root + eps)
        return m, v, u + once(decay) * p if decay else u

    def trust(directions):
        norms = [formula.norm(x) for x in (arrays["param"], np.array([float(x.value) for x in directions], dtype))]
        if not (options["adapt"] and all(norms)):
            return 1
        size, step = (Fraction(x) for x in norms)
        if rule == "lamb":
            return double(size / step)
        return double(double(Fraction(options["trust_coefficient"]) * size) / double(step + double(decay * size)))

    if rule in ("lars", "lamb"):
        names = ("param", "grad") if rule == "lars" else ("param", "grad", "exp_avg", "exp_avg_sq")
        elements = [[Rounded(x, dtype) for x in row] for row in zip(*(arrays[name] for name in names), strict=True)]
        signed = [(p, -g if options["maximize"] else g, *more) for p, g, *more in elements]
        rate = double(lr * trust([x[1] if rule == "lars" else lamb(*x)[2] for x in signed]))
    keep, eta, one = once(double(1 - shrink)), once(rate), once(1)
    new = []
    for elements in zip(*arrays.values(), strict=True):
        b = dict(zip(arrays, (Rounded(x, dtype) for x in elements), strict=True))
        p, g = b["param"], -b["grad"] if options["maximize"] else b["grad"]
        before, average = b["param"], b.get("ax")
        if decay and not decoupled and rule not in ("lamb", "schedule_free_adamw"):
            g = g + once(decay) * p
        if "lr_scale" in b:
            eta, keep = once(rate) * b["lr_scale"], one - once(shrink) * b["lr_scale"]
        before = p
        p = keep * p
        if rule == "sgd":
            p = p - eta * g
        elif rule == "momentum" and options["form"] == "torch":
            v = b["velocity"] = mu * b["velocity"] + once(double(1 - Fraction(options["dampening"]))) * g
            p = p - eta * (g + mu * v) if options["nesterov"] else p - eta * v
        elif rule == "momentum":
            v = b["velocity"] = mu * b["velocity"] - eta * g
            p = p + (mu * v - eta * g) if options["nesterov"] else p + v
        elif rule == "adagrad":
            b["state_sum"] = b["state_sum"] + g * g
            p = p - eta * (g / (b["state_sum"].sqrt() + eps))
        elif rule == "rmsprop":
            alpha, rest = once(options["alpha"]), once(double(1 - Fraction(options["alpha"])))
            spread = b["square_avg"] = alpha * b["square_avg"] + rest * (g * g)
            if options["centered"]:
                a = b["grad_avg"] = alpha * b["grad_avg"] + rest * g
                spread = spread - a * a
            step = g / (spread.sqrt() + eps)
            if options["momentum"]:
                step = b["momentum_buffer"] = mu * b["momentum_buffer"] + step
            p = p - eta * step
        elif rule in ("adam", "nadam"):
            m = b["exp_avg"] = shares[0] * b["exp_avg"] + rests[0] * g
            v = b["exp_avg_sq"] = shares[1] * b["exp_avg_sq"] + rests[1] * (g * g)
            if options.get("amsgrad"):
                v = b["max_exp_avg_sq"] = max(b["max_exp_avg_sq"], v, key=lambda x: x.value)
            step = now * g + ahead * m if rule == "nadam" else m
            p = p - eta * (step / (v.sqrt() * root + eps))
        elif rule == "radam":
            m = b["exp_avg"] = shares[0] * b["exp_avg"] + rests[0] * g
            v = b["exp_avg_sq"] = shares[1] * b["exp_avg_sq"] + rests[1] * (g * g)
            p = p - eta * (m / (v.sqrt() + eps) if rectified else m)
        elif rule == "adamax":
            m = b["exp_avg"] = shares[0] * b["exp_avg"] + rests[0] * g
            u = b["exp_inf"] = max(shares[1] * b["exp_inf"], abs(g) + eps, key=lambda x: x.value)
            p = p - eta * (m / u)
        elif rule == "adadelta":
            rho, rest = once(options["rho"]), once(double(1 - Fraction(options["rho"])))
            s = b["square_avg"] = rho * b["square_avg"] + rest * (g * g)
            delta = ((b["acc_delta"] + eps) / (s + eps)).sqrt() * g
            b["acc_delta"] = rho * b["acc_delta"] + rest * (delta * delta)
            p = p - eta * delta
        elif rule == "lamb":
            b["exp_avg"], b["exp_avg_sq"], u = lamb(p, g, b["exp_avg"], b["exp_avg_sq"])
            p = p - eta * u
        elif rule == "lars":
            v = b["velocity"] = mu * b["velocity"] + eta * g
            p = p - v
        elif rule == "lion":
            x = shares[0] * b["exp_avg"] + rests[0] * g
            p = p - eta * sign(x)
            b["exp_avg"] = shares[1] * b["exp_avg"] + rests[1] * g
        elif rule == "rprop":
            size, same = eta, once(0)
            if options["step"] > 1:
                same = g * b["prev"]
                factor = 1 if same.value == 0 else options["etas"][same.value > 0]
                size = b["step_size"] * once(factor)
            least, most = (once(x) for x in options["step_sizes"])
            size = b["step_size"] = min(max(size, least, key=lambda x: x.value), most, key=lambda x: x.value)
            b["prev"] = g = once(0) if same.value < 0 else g
            p = before - sign(g) * size
        elif rule == "asgd":
            p = p - eta * g
            b["ax"] = average + once(0.7) * (p - average)
        elif rule == "ademamix":
            m = b["exp_avg"] = shares[0] * b["exp_avg"] + rests[0] * g
            slow = b["exp_avg_slow"] = shares[2] * b["exp_avg_slow"] + rests[2] * g
            v = b["exp_avg_sq"] = shares[1] * b["exp_avg_sq"] + rests[1] * (g * g)
            p = p - eta * ((m + weight * slow) / (v.sqrt() * root + eps))
        elif rule == "sign_sgd":
            p = p - eta * sign(g)
        elif rule == "signum":
            m = b["exp_avg"] = mu * b["exp_avg"] + once(double(1 - Fraction(options["momentum"]))) * g
            p = p - eta * sign(m)
        elif rule.startswith("schedule_free"):
            if rule == "schedule_free_adamw":
                v = b["exp_avg_sq"] = shares[1] * b["exp_avg_sq"] + rests[1] * (g * g)
                g = g / (v.sqrt() * root + eps)
                g = g + once(decay) * p if decay else g
            step = eta * g
            z = p if options["step"] == 1 else b["z"]
            p = (p + newest * (z - p)) - step_share * step
            b["z"] = z - step
        elif rule == "muon":
            rest = once(double(1 - Fraction(options["momentum"])))
            v = mu * b["velocity"] + rest * g
            if options["prepare"]:
                p, b["update"] = before, mu * v + rest * g if options["nesterov"] else v
            else:
                p, b["velocity"] = p - eta * b["update"], v
        else:
            raise NotImplementedError(f"{rule} needs its formula here")
        new.append({**b, "param": p})
    return {name: np.array([float(row[name].value) for row in new], dtype) for name in arrays}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(
    ("rule", "options"), [pytest.param(r, o, id=f"{r}-{describe(o)}") for r in RULES for o in option_cases(r)]
)
def test_rules_are_their_formula_rounded_at_each_operation(rule, options, dtype):
    if options.get("eps") == 0.0:
        options = {**options, "eps": 1e-3}  # the exact arithmetic has no division by 0
    arrays = buffers(rule, options, dtype, 40)
    if rule in ("sgd", "momentum", "sign_sgd", "signum"):  # and some that are nearly subnormal
        for name in arrays.keys() - {"lr_scale"}:
            arrays[name][-10:] *= float(np.finfo(dtype).smallest_normal)
    if "grad_avg" in arrays:
        arrays["square_avg"] += np.float32(100) * arrays["grad_avg"] ** 2  # a variance is not negative
    wanted = exact_update(rule, arrays, options, dtype)
    call(rule, arrays, options, native=False)
    for name, x in arrays.items():
        if name not in ("grad", "lr_scale"):
            np.testing.assert_array_equal(x, wanted[name], err_msg=name)


def test_powers_are_within_a_few_roundings():
    """By multiplication: within a few roundings of the exact power, and of 0.96 to any other."""
    for base in (0.0, 0.5, 0.9, 0.999, 1 - 1e-9, 0.123456789):
        for exponent in (1, 2, 3, 10, 1000, 12345):
            exact = Fraction(base) ** exponent if exponent < 20_000 else None
            assert formula.power(base, exponent) == pytest.approx(float(exact), rel=1e-13 * exponent**0.5, abs=1e-320)
    for x in (0.0, 1e-12, 0.004, 1.0, 3.1, 7.5, 100.0, 4000.0, 18000.0, 1e6, 1e300, math.inf):
        assert formula.power_of_096(x) == pytest.approx(0.96**x, rel=2e-13, abs=1e-300)


def test_a_power_to_nearest_is_rounded_once():
    rng = np.random.default_rng(1)
    bases = [0.0, 0.5, 0.9, 0.999, 0.9999, 1 - 1e-9, 1 - 2.0**-53, 0.123456789, *rng.uniform(0.0, 1.0, 20)]
    for base in (*bases, *(1 - 10.0 ** rng.uniform(-6, -1, 20))):
        for exponent in (*range(1, 40), 100, 255, 999, 2000):
            exact = float(Fraction(base) ** exponent)
            found = formula.power_to_nearest(float(base), exponent)
            assert found == exact or max(found, exact) < 1e-280  # there, what is left off is too small for a double


def test_rounding_is_numpys():
    """The exact arithmetic above rounds as the hardware does."""
    for seed in range(3):
        a, b = numbers(np.float32, 50, seed), numbers(np.float32, 50, seed + 10)
        for x, y in zip(a, b, strict=True):
            assert float((Rounded(x, np.float32) * Rounded(y, np.float32)).value) == x * y
            assert float((Rounded(x, np.float32) - Rounded(y, np.float32)).value) == x - y


def torch_documented(theta, gradients, *, lr, momentum, dampening, nesterov, weight_decay, maximize):
    """The algorithm in torch.optim.SGD's documentation, on a list of gradients at known points."""
    b = None
    for t, gradient in enumerate(gradients, start=1):
        g = gradient(theta)
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * theta
        if momentum != 0:
            b = momentum * b + (1 - dampening) * g if t > 1 else g
            g = g + momentum * b if nesterov else b
        theta = theta - lr * g
    return theta


@pytest.mark.parametrize("seed", range(60))
def test_sgd_follows_pytorchs_formula(backend, seed):
    """200 steps of float64 with random options, on a quadratic that keeps the path bounded."""
    rng = np.random.default_rng(seed)
    nesterov = bool(rng.integers(2))
    options = {
        "lr": rng.uniform(0.001, 0.2),
        "momentum": rng.uniform(0.1, 0.95) if nesterov else rng.choice([0.0, rng.uniform(0, 0.95)]),
        "dampening": 0.0 if nesterov else rng.choice([0.0, rng.uniform(0, 0.9)]),
        "nesterov": nesterov,
        "weight_decay": rng.choice([0.0, rng.uniform(0, 0.1)]),
        "maximize": bool(rng.integers(2)),
    }
    sign = -1.0 if options["maximize"] else 1.0
    curvature, start = rng.uniform(0.1, 1.0, 10), rng.standard_normal(10)

    def gradient(theta):
        return sign * curvature * theta + 0.1

    expected = torch_documented(start.copy(), [gradient] * 200, **options)
    theta = start.copy()
    optimizer = gdm.SGD(theta, **options)
    for _ in range(200):
        optimizer.step(gradient(theta))
    np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-14)


def test_forms_walk_the_same_path_until_lr_changes(backend):
    start = np.linspace(-1, 1, 9)
    paths = {}
    for form in ("torch", "classic"):
        theta = start.copy()
        optimizer = gdm.SGD(theta, lr=0.1, momentum=0.8, form=form)
        for _ in range(10):
            optimizer.step(theta**3)
        same = theta.copy()
        optimizer.lr = 0.01
        optimizer.step(theta**3)
        paths[form] = same, theta
    np.testing.assert_allclose(paths["torch"][0], paths["classic"][0], rtol=1e-12, atol=1e-15)
    assert np.max(np.abs(paths["torch"][1] - paths["classic"][1])) > 1e-3


def test_the_sign_of_zero_and_nan(backend):
    """It is the number itself: an element without a gradient stays where it is, and NaN is not hidden."""
    grad = np.array([0.0, -0.0, 5e-324, -5e-324, np.inf, -np.inf, np.nan])
    wanted = np.array([1.0, 1.0, 0.5, 1.5, 0.5, 1.5, np.nan])
    for momentum in (0.0, 0.5):
        theta = np.ones(7)
        optimizer = gdm.Signum(theta, lr=0.5, momentum=momentum)
        optimizer.step(grad if momentum == 0 else 2 * grad)  # half of the smallest number would be 0
        np.testing.assert_array_equal(theta, wanted)


def test_reference_and_compiled_functions_have_the_same_names_and_signatures():
    """The reference mirrors the compiled functions, name for name."""
    for rule in RULES:
        native, mirrored = (inspect.signature(function(rule, native=n)) for n in (True, False))
        assert list(native.parameters) == list(mirrored.parameters)
        for name, parameter in native.parameters.items():
            assert parameter.kind == mirrored.parameters[name].kind
            assert parameter.default == mirrored.parameters[name].default
        assert set(native.parameters) == {
            "param",
            "grad",
            *RULES[rule]["states"],
            *RULES[rule]["scalars"],
            *RULES[rule]["options"],
        }
        positional = [name for name, p in native.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == names(rule, plain(rule))
        assert function(rule).__doc__ == function(rule, native=False).__doc__


def test_options_are_those_of_the_table():
    domains = {"not_negative": _checks.NOT_NEGATIVE, "below_one": _checks.BELOW_ONE, "up_to_one": _checks.UP_TO_ONE}
    others = {"form": "form", "step": "count", "lr_scale": "factors", "etas": "etas", "step_sizes": "step_sizes"}
    others["prepare"] = "phase"
    for rule_name, rule in RULES.items():
        for name, kind in rule["options"].items():
            if kind in domains:
                assert _checks.domain_of(rule_name, name) is domains[kind]
            else:
                betas = "three_betas" if rule_name == "ademamix" else "betas"
                assert {**dict.fromkeys(_checks.FLAGS, "flag"), **others, "betas": betas}[name] == kind
        for name, initial in rule["scalars"].items():
            assert _checks.SCALARS[name].initial == initial
        for name, needs in rule["states"].items():
            assert _checks.OPTIONAL_STATES.get(name) == needs
            assert (name in SQUARES) == (name in rule["squares"])
            assert (name in WORK) == (name in rule["work"])
