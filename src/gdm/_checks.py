"""Checks the arguments of every call, and raises the errors.

The compiled module has a fast check of its own, which only finds out whether all is well. If it is not, the compiled
module calls this one, which raises the error. The reference always calls this one. So each message is written once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from . import _foreign
from ._foreign import Places
from .errors import OverlapError, StaleBufferError

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import Buffer

    class SupportsDLPack(Protocol):
        """A tensor, for example."""

        def __dlpack__(self, *args: Any, **keywords: Any) -> Any: ...
        def __dlpack_device__(self) -> tuple[Any, Any]: ...

    # In NumPy's stubs, arrays have the buffer protocol only from Python 3.12 on.
    Floats = np.ndarray[Any, Any] | Buffer | SupportsDLPack

Array = np.ndarray[Any, np.dtype[Any]]
Options = dict[str, Any]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALF, BITS = np.dtype(np.float16), np.dtype(np.uint16)  # BITS: those of bfloat16, which NumPy does not have
MAX_THREADS = 256  # GDM_MAX_THREADS
MAX_NS_STEPS = 99  # of Newton and Schulz in Muon's step, as PyTorch has it
FORMS = ("torch", "classic")
# The options that are one of some words. Those of form are known by identity in the compiled module.
WORDS: dict[str, tuple[str | None, ...]] = {
    "form": FORMS,
    "method": ("muon", "adamw"),  # of a group of Muon
    "adjust_lr_fn": ("original", "match_rms_adamw", None),  # of Muon's class
}


class Domain(NamedTuple):
    """An interval of finite numbers that starts at 0, or above a number."""

    high: float
    closed: bool
    words: str
    above: float | None = None

    def __contains__(self, x: object) -> bool:
        assert isinstance(x, float)
        if self.above is not None and not x > self.above:
            return False
        return 0.0 <= x <= self.high if self.closed else 0.0 <= x < self.high


NOT_NEGATIVE = Domain(math.inf, False, "finite and not negative")
BELOW_ONE = Domain(1.0, False, "in [0, 1)")
UP_TO_ONE = Domain(1.0, True, "in [0, 1]")

# The options of all rules that are real numbers, and then those that are flags, as in csrc/rules.def (a test compares
# them). The other options are form, step, lr_scale, and those that are several numbers.
REALS = {
    "lr": NOT_NEGATIVE,
    "momentum": BELOW_ONE,
    "dampening": UP_TO_ONE,
    "weight_decay": NOT_NEGATIVE,
    "eps": NOT_NEGATIVE,
    "alpha": BELOW_ONE,
    "lr_decay": NOT_NEGATIVE,
    "momentum_decay": NOT_NEGATIVE,
    "rho": UP_TO_ONE,
    "trust_coefficient": NOT_NEGATIVE,
    "lambd": NOT_NEGATIVE,
    "t0": NOT_NEGATIVE,
    "t_alpha": NOT_NEGATIVE,
    "t_beta3": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "r": NOT_NEGATIVE,
    "weight_lr_power": NOT_NEGATIVE,
    "initial_accumulator_value": NOT_NEGATIVE,  # only the class has it
}
# The rules for which an option means something else than for the others.
OWN_DOMAINS = {("asgd", "alpha"): NOT_NEGATIVE, ("ademamix", "alpha"): NOT_NEGATIVE}  # factors, not shares
BETAS_OF_ADEMAMIX = 3  # all other rules have two
AVERAGED = {"schedule_free_sgd": "momentum", "schedule_free_adamw": "betas"}  # the option that is the average's share
ETAS = (Domain(1.0, False, "in (0, 1)", above=0.0), Domain(math.inf, False, "finite and above 1", above=1.0))
FLAGS = ("nesterov", "maximize", "decoupled_weight_decay", "centered", "amsgrad", "adapt", "prepare")
# Some states exist only if an option is not 0.
OPTIONAL_STATES = {"grad_avg": "centered", "momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad"}


class Scalar(NamedTuple):
    """A number that a rule keeps from step to step."""

    initial: float
    domain: Domain


SCALARS = {
    "mu_product": Scalar(1.0, UP_TO_ONE),
    "eta": Scalar(0.0, NOT_NEGATIVE),
    "mu": Scalar(1.0, UP_TO_ONE),
    "weight_sum": Scalar(0.0, NOT_NEGATIVE),
    "lr_max": Scalar(0.0, NOT_NEGATIVE),
}
EVALUATING = "the optimizer is in eval mode, in which the parameters are the averages; call train() before step()"
# From here on a double rounds to infinity in float32.
FLOAT32_OVERFLOW = 2.0**128 - 2.0**103


def real(name: str, value: object, domain: Domain) -> float:
    """Returns the value as a float. It must be a real number in the domain."""
    array_of_others = isinstance(value, (np.generic, np.ndarray)) and (value.ndim or value.dtype.kind not in "fiu")
    if array_of_others or isinstance(value, (bool, str, bytes, bytearray)):
        raise TypeError(f"{name} must be a real number, not {_kind(value)}")
    try:
        # A subclass may have its own __float__. The compiled functions do not call it, so this one does not either.
        number = float.__float__(value) if isinstance(value, float) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, not {_kind(value)}") from None
    except OverflowError:
        number = math.inf
    if number not in domain:
        raise ValueError(f"{name} must be {domain.words}, got {_show(value)}")
    return number


def finite(name: str, value: object) -> float:
    """Returns the value as a float. It must be a finite real number, of any sign."""
    try:
        return math.copysign(real(name, abs(value), NOT_NEGATIVE), value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be a finite real number, got {_show(value)}") from None


def finite_in(name: str, value: float, dtype: np.dtype[Any]) -> None:
    """Requires that a finite number stays finite in the dtype that a rule computes in, and that a product is finite."""
    if abs(value) >= FLOAT32_OVERFLOW and dtype == np.float32:
        raise ValueError(f"{name} must be finite in float32, got {value!r}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def several(name: str, value: object, domains: Sequence[Domain]) -> tuple[float, ...]:
    """Returns the value as floats. It must be as many real numbers as there are domains, each in its domain."""
    if not isinstance(value, (tuple, list)) or len(value) != len(domains):
        how_many = "a pair of" if len(domains) == 2 else "three"
        raise TypeError(f"{name} must be {how_many} real numbers, not {_show(value)}")
    return tuple([real(f"{name}[{k}]", x, domains[k]) for k, x in enumerate(value)])


def domain_of(rule: str, name: str) -> Domain:
    """The domain of a rule's option that is a real number."""
    return OWN_DOMAINS.get((rule, name)) or REALS[name]


def unbounded(checked: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among checked options, with their names."""
    for name, value in checked.items():
        if isinstance(value, tuple):
            yield from ((f"{name}[{k}]", x) for k, x in enumerate(value))
        elif name in REALS and not callable(value):
            yield name, value


def coefficients(name: str, value: object) -> tuple[float, ...]:
    """Returns the value as three floats. It must be three finite real numbers, of any sign."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise TypeError(f"{name} must be three real numbers, not {_show(value)}")
    return tuple(finite(f"{name}[{k}]", x) for k, x in enumerate(value))


def word(name: str, value: object, words: tuple[str | None, ...]) -> str | None:
    """Returns the one of some words that the value is equal to."""
    for known in words:
        if value is known or (isinstance(value, str) and value == known):
            return known
    *some, last = map(repr, words)
    raise ValueError(f"{name} must be {', '.join(some)} or {last}, got {value!r}")


def flag(name: str, value: object) -> bool:
    """Returns the value as a bool. It must be a bool or an int."""
    if not isinstance(value, (bool, np.bool_, int)):
        raise TypeError(f"{name} must be True or False, not {_kind(value)}")
    return bool(value)


def whole(name: str, n: object, low: float = -math.inf, high: float = math.inf) -> int:
    """Returns the value as an int. It must be a whole number from ``low`` to ``high``."""
    try:
        number = None if isinstance(n, (bool, np.bool_)) else operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, not {_kind(n)}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {number}")
    return number


def thread_count(name: str, n: object) -> int:
    """Returns a number of threads as an int. It must be from 1 to 256."""
    return whole(name, n, 1, MAX_THREADS)


def options(rule: str, given: Mapping[str, Any]) -> Options:
    """Returns the checked options of a rule: each must be valid, and they must fit together."""
    checked: Options = {}
    for name, value in given.items():
        if name in WORDS:
            checked[name] = word(name, value, WORDS[name])
        elif name in FLAGS:
            checked[name] = flag(name, value)
        elif name == "betas":
            checked[name] = several(name, value, [BELOW_ONE] * (BETAS_OF_ADEMAMIX if rule == "ademamix" else 2))
        elif name == "etas":
            checked[name] = several(name, value, ETAS)
        elif name == "step_sizes":
            checked[name] = several(name, value, [NOT_NEGATIVE] * 2)
            if checked[name][0] > checked[name][1]:
                raise ValueError(f"step_sizes must not begin with the larger number, got {checked[name]!r}")
        elif name == "step":
            checked[name] = whole(name, value, 1, 2**63 - 1)
        elif name == "ns_steps":
            checked[name] = whole(name, value, 0, MAX_NS_STEPS)
        elif name == "ns_coefficients":
            checked[name] = coefficients(name, value)
        else:
            checked[name] = real(name, value, domain_of(rule, name))
    if rule == "momentum":
        _require_momentum_fits(checked)
    if rule in AVERAGED:
        name, share = AVERAGED[rule], checked[AVERAGED[rule]]
        name, share = (f"{name}[0]", share[0]) if isinstance(share, tuple) else (name, share)
        if share == 0:
            raise ValueError(f"{name} must be above 0, got {share!r}: without it the average could not be computed")
    return checked


def _require_momentum_fits(checked: Options) -> None:
    """Requires that the checked options of momentum fit together."""
    dampening = checked["dampening"]
    if checked["nesterov"] and checked["momentum"] == 0:
        raise ValueError("nesterov needs momentum > 0, got momentum=0.0")
    if checked["nesterov"] and dampening != 0:
        raise ValueError(f"dampening must be 0 with nesterov, got {dampening!r}")
    if checked["form"] == "classic" and dampening != 0:
        raise ValueError(f"dampening must be 0 with form='classic', got {dampening!r}")


def buffers(
    names: Sequence[str], given: Sequence[Any], writable: Container[str], accepts: Accepts | None = None
) -> tuple[list[Array], Places]:
    """Returns plain NumPy arrays that share the memory of those that were given, and the places of tensors.

    Each must be a contiguous and aligned buffer of float32 or float64, or of what ``accepts`` says, and writable if its
    name is in ``writable``. Looking at one may run other people's code, which must leave the others where they are.
    """
    accepts = accepts or Accepts()
    checked = [_buffer(name, x, name in writable, accepts) for name, x in zip(names, given, strict=True)]
    places = [place for _, place in checked]
    _foreign.require_unmoved(names, given, places)
    return [x for x, _ in checked], places


class Accepts(NamedTuple):
    """Which dtypes an array may have beside float32 and float64."""

    narrow: bool = False  # bfloat16 (of ml_dtypes, or a tensor) and float16
    uint16: bool = False  # uint16, which holds the bits of bfloat16

    def require(self, name: str, x: Array, given: str, is_bfloat16_tensor: bool) -> None:
        """Requires that the array ``x`` has one of these dtypes. ``given`` is the dtype's name for the message."""
        floats = (*FLOATS, HALF) if self.narrow else FLOATS
        if x.dtype in floats or (self.narrow and is_bfloat16(x.dtype)):
            return
        if x.dtype.newbyteorder("=") in floats:
            raise TypeError(f"{name} is byte-swapped (dtype {x.dtype.str!r}); expected the machine's byte order")
        advice = ""
        if x.dtype == BITS and self.narrow:
            if self.uint16 or is_bfloat16_tensor:
                return
            advice = "; if it holds the bits of bfloat16, make the optimizer with dtype='bfloat16'"
        words = "float64, float32, float16 or bfloat16" if self.narrow else "float32 or float64"
        raise TypeError(f"{name} has dtype {given}; expected {words}{advice}")


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the dtype bfloat16 of ml_dtypes, which is not imported for that."""
    if dtype.num < 256 or dtype.name != "bfloat16" or dtype.itemsize != 2:
        return False
    set_bfloat16(dtype)
    return True


def _no_module(dtype: np.dtype[Any]) -> None:
    """There is no compiled module that could be told."""


set_bfloat16 = _no_module  # the compiled module puts its own function here


def _buffer(name: str, given: Any, writable: bool, accepts: Accepts) -> tuple[Array, int | None]:
    x, place = (given, None) if isinstance(given, np.ndarray) else _foreign.view(name, given)
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, and an update would ignore its mask; pass its .data")
        x = np.ndarray.view(x, np.ndarray)  # without the methods that a subclass overrides
    is_bfloat16_tensor = place is not None and str(given.dtype) == "torch.bfloat16"
    accepts.require(name, x, str(given.dtype if is_bfloat16_tensor else x.dtype), is_bfloat16_tensor)
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        if writable:
            # np.ascontiguousarray(param) as the argument would train a copy, and leave the user's array as it is.
            advice = (
                "if you passed a copy, only the copy would be updated: make the array contiguous before anything else "
                "uses it, and use only that array"
            )
        elif place is not None:
            advice = "pass a contiguous copy, its .contiguous()"
        else:
            advice = "pass a contiguous copy, np.ascontiguousarray(...)"
        raise ValueError(f"{name} is not contiguous (shape {x.shape}, strides {x.strides} bytes); {advice}")
    if not x.flags.aligned:
        raise ValueError(f"{name} is misaligned: its address is not a multiple of {x.itemsize} bytes")
    if writable and not x.flags.writeable:
        how = "" if isinstance(given, np.ndarray) or isinstance(x.base, memoryview) else ", as DLPack gives it"
        raise ValueError(f"{name} is read-only{how}")
    if not is_inside_base(x):
        raise StaleBufferError(f"{name} is a view of an array that has been resized, so its memory may be gone")
    return x, place


def is_inside_base(x: Array) -> bool:
    """Whether the memory of a view still belongs to the array that it is a view of, if that one owns it.

    Only an array that owns its memory can be resized.
    """
    base = x.base
    while isinstance(base, np.ndarray) and not base.flags.owndata:
        base = base.base
    if not isinstance(base, np.ndarray):
        return True
    start, first = address(x), address(base)
    return first <= start and start + x.nbytes <= first + base.nbytes


def like(name: str, x: Array, first_name: str, first: Array) -> None:
    """Requires that ``x`` has the dtype, shape and memory order of ``first``."""
    if x.dtype != first.dtype:
        raise ValueError(f"{name} has dtype {x.dtype}, but {first_name} has {first.dtype}")
    has_shape_of(name, x, first_name, first)


def gradient_for(name: str, x: Array, param_name: str, param: Array) -> None:
    """Requires that a gradient has the shape and memory order of its parameter, and need not be rounded for it."""
    if x.dtype == np.float64 and param.dtype != np.float64:
        raise ValueError(
            f"{name} has dtype {x.dtype}, but {param_name} has {dtype_name(param)}, whose update is computed in "
            "float32; convert it to float32 first"
        )
    has_shape_of(name, x, param_name, param)


def dtype_name(x: Array) -> str:
    """The name of an array's storage dtype."""
    return "bfloat16" if x.dtype == BITS else x.dtype.name


def has_shape_of(name: str, x: Array, first_name: str, first: Array) -> None:
    """Requires that ``x`` has the shape and memory order of ``first``."""
    if x.shape != first.shape:
        raise ValueError(f"{name} has shape {x.shape}, but {first_name} has {first.shape}")
    if not (_both(x, first, "c_contiguous") or _both(x, first, "f_contiguous")):
        raise ValueError(
            f"{name} and {first_name} lie in memory in different orders (C and Fortran); expected the same"
        )


class Named(NamedTuple):
    """An array, its name in messages, and whether an update writes to it."""

    name: str
    array: Array
    written: bool


def disjoint(buffers: Iterable[Named]) -> None:
    """Requires that a buffer that is written shares no memory with another one."""
    spans = sorted(((address(b.array), b) for b in buffers if b.array.size), key=lambda span: span[0])
    read_end = written_end = -1
    reader = writer = None
    for start, b in spans:
        if start < written_end and writer is not None:
            _overlap(writer, b)
        if b.written and start < read_end and reader is not None:
            _overlap(reader, b)
        end = start + b.array.nbytes
        if b.written and end > written_end:
            written_end, writer = end, b
        if not b.written and end > read_end:
            read_end, reader = end, b


def arguments(rule: str, given: Mapping[str, Any], positional: int) -> dict[str, Any]:
    """Returns all arguments of a rule's function as plain arrays and checked options.

    The first ``positional`` arguments are buffers.
    """
    names = list(given)
    optional = [name for name in names[positional:] if name in (*OPTIONAL_STATES, "lr_scale", *SCALARS)]
    checked = options(rule, {name: given[name] for name in names[positional:] if name not in optional})
    needed = names[:positional]
    for name in optional:
        if name in OPTIONAL_STATES:
            option = OPTIONAL_STATES[name]
            if checked[option] and given[name] is None:
                raise ValueError(f"{name} is needed with {option}={checked[option]!r}, got None")
            if not checked[option] and given[name] is not None:
                raise ValueError(f"{name} is only used with {option}, which is {checked[option]!r}; expected None")
        if given[name] is not None or name in SCALARS:
            needed.append(name)
    read = ("grad", "lr_scale")
    found, _ = buffers(needed, [given[name] for name in needed], set(needed).difference(read))
    arrays = dict(zip(needed, found, strict=True))
    for name, x in arrays.items():
        if name in SCALARS:
            if x.dtype != np.float64 or x.size != 1:
                raise ValueError(f"{name} must be one float64, got dtype {x.dtype} and shape {x.shape}")
            if x.item() not in SCALARS[name].domain:
                raise ValueError(f"{name} must be {SCALARS[name].domain.words}, got {x.item()!r}")
        elif name != "param":
            like(name, x, "param", arrays["param"])
    disjoint(Named(name, x, name not in read) for name, x in arrays.items())
    for name, value in unbounded(checked):
        finite_in(name, value, arrays["param"].dtype)
    return {**dict.fromkeys(optional), **arrays, **checked}


def in_order_of(x: Array, value: Any) -> Array:
    """A value as an array of the dtype and memory order of another array; the same object if it is one already."""
    result: Array = np.asarray(value, x.dtype, order="C" if x.flags.c_contiguous else "F")
    return result


def address(x: Array) -> int:
    """The address at which the array's memory begins."""
    return int(x.ctypes.data)  # not __array_interface__, which ends the process if memory runs out in it (NumPy 2.4)


def _overlap(a: Named, b: Named) -> NoReturn:
    raise OverlapError(f"{a.name} and {b.name} share memory; an update in place needs separate buffers")


def _both(a: Array, b: Array, order: str) -> bool:
    return bool(getattr(a.flags, order) and getattr(b.flags, order))


def _kind(x: object) -> str:
    return f"{type(x).__name__} ({_show(x)})" if isinstance(x, (str, bytes, int, float, complex)) else type(x).__name__


def _show(x: object) -> str:
    try:
        text = repr(x)
    except ValueError:  # Python refuses to print an int with so many digits
        return "a number of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."
