"""The files of which mutants are made, and the tests that are run on each: wider ones if the first ones pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Subject(NamedTuple):
    group: str
    files: str  # a pattern below the root
    tests: tuple[tuple[str, ...], ...]  # arguments of pytest, for one run after the other
    left_out: str = ""  # lines that match are not changed: performance only, or another machine's


def files(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)


# Only the baseline's kernels are changed. The word is the rule's name as classes write it.
ONE_RULE = "-k ({rule} or {word}) and not avx"
NO_AVX = "-k not avx"
QUICK = "-k not avx and not both_backends and not goes_on"  # without the tests that take longest
CONTRACT = ("-k (momentum or ademamix or rprop or alpha or options) and not avx and not reference", *files("contract"))
PLAN = files("c_plan", "c_step_args", "c_prepare", "c_swap")
CLASSES = (QUICK, *files("overlap", "groups", "absent", "gradients", "lr_scale", "states", "state_dict", "options"))
SUBJECTS = (
    Subject(
        "kernels",
        "csrc/rules/*.inc",
        ((ONE_RULE, *files("kernels")), (ONE_RULE, *files("class_rules", "schedule_free", "muon")), PLAN),
    ),
    Subject(
        "stages",
        "csrc/stages/{convert.inc,split.inc,numbers.h}",
        (
            (NO_AVX, *files("c_narrow")),
            ("-k touch_no and not avx", *files("c_stages")),
            (QUICK, *files("c_stages", "narrow")),
        ),
    ),
    Subject(
        "stages",
        "csrc/stages/{arithmetic,int8}.inc",
        (
            ("-k (around or combination or special) and not avx", *files("c_stages")),
            (QUICK, *files("c_narrow", "narrow")),
        ),
    ),
    Subject(
        "stages",
        "csrc/tiles.c",
        (
            ("-k not every_rule and not avx", *files("c_swap", "c_prepare", "c_stages")),
            (QUICK, *files("narrow", "c_fp_mode")),
        ),
        r"enum \{ TILE",
    ),
    Subject(
        "plan",
        "csrc/{plan,arrange,step,decide,swap}.c",
        (
            PLAN,
            ("-k (may_change or every_rule and (lamb or lars)) and not avx", *files("c_stages")),
            CLASSES,
            (QUICK, *files("narrow")),
            ("-k wrong_gdm_isa or plans", *files("c", "c_stress")),
        ),
        r"wanted > 2 \* \*room|plan->bytes",
    ),
    Subject("plan", "csrc/tree.h", (files("c_reduce"),)),
    Subject(
        "plan",
        "csrc/trust.c",
        (
            (
                "-k (lamb or lars) and not avx and not both_backends",
                *files("class_rules", "kernels", "narrow", "c_stages"),
            ),
            ("-k hosts_threads", *files("c_plan")),
        ),
    ),
    Subject(
        "plan",
        "csrc/{reduce.c,reductions.inc}",
        ((NO_AVX, *files("reductions", "c_reduce", "c_step_args")), ("-k wrong_gdm_isa", *files("c"))),
    ),
    Subject("plan", "csrc/accumulate.c", (files("c_accumulate"), (QUICK, *files("narrow", "c_fp_mode")))),
    Subject("plan", "csrc/real_power.h", (files("real_power"), files("schedule_free"))),
    Subject(
        "plan",
        "csrc/{host.h,options.c}",
        (
            files("c_plan", "real_power"),
            ("-k (asgd or nadam or rprop or schedule_free or ademamix) and not avx", *files("kernels")),
            CONTRACT,
            files("schedule_free"),
            ("-k other_versions", *files("c")),
        ),
    ),
    Subject(
        "plan",
        "csrc/update.c",
        (CONTRACT, ("-k (momentum or nadam) and not avx", *files("kernels")), files("c_fp_mode", "c")),
    ),
    Subject(
        "pool",
        "csrc/pool.c",
        (
            ("-k (momentum or few or uneven) and not avx", *files("threads")),
            ("-k pool or hosts_threads", *files("c_plan", "c_stress")),
            files("processes", "concurrency"),
            files("torch_engine"),
        ),
        r"#define (SPIN|SHARE|STEPS|LOOK|STALL|LONG|TIMES|GOOD|MOST)_|spins|pause_briefly|setstacksize|i < 64",
    ),
    Subject("pool", "csrc/{threads.c,os_posix.h}", (files("cgroups", "threads"), files("processes"))),
    Subject(
        "checks",
        "src/gdm/_checks.py",
        (files("options", "bases"), CONTRACT, CLASSES, files("any_array", "array_update")),
    ),
    Subject(
        "checks",
        "src/gdm/optimizer/{options,around}.py",
        (files("options", "groups", "lr_scale"), (QUICK, *files("narrow", "state_dict", "schedules_in_steps"))),
    ),
    Subject(
        "checks",
        "src/gdm/_foreign.py",
        (files("any_array"), files("torch_arrays"), files("gradients", "copies", "state_dict", "array_update")),
    ),
    Subject("checks", "src/gdm/_arrays.py", (files("arrays", "backend"),)),
    Subject("checkpoint", "src/gdm/_checkpoint.py", (files("checkpoint", "checkpoint_damage", "checkpoint_saving"),)),
    Subject("adapters", "src/gdm/scipy/{walk,averaged,run}.py", (files("scipy"),)),
    Subject("adapters", "src/gdm/thinc/*.py", (files("thinc"),)),
    Subject("adapters", "src/gdm/optimizer/array_update.py", (files("array_update"), files("thinc", "sklearn"))),
    Subject("adapters", "src/gdm/{orthogonal,optimizers/muon}.py", (files("muon"), files("torch_muon"))),
    Subject("adapters", "src/gdm/torch/muon.py", (files("torch_muon"),)),
    Subject("adapters", "src/gdm/torch/modes.py", (files("torch_schedule_free"), files("torch_states"))),
    Subject(
        "adapters",
        "src/gdm/torch/{arrange,by_reference}.py",
        (
            files("torch_bits", "torch_tensors"),
            files("torch_narrow", "torch_states", "torch_behaviour"),
            files("torch_muon", "torch_distributed"),
        ),
    ),
)


# Files of all groups whose tests are quick.
FEW = (
    "csrc/rules/sgd.inc",
    "csrc/swap.c",
    "csrc/threads.c",
    "src/gdm/_arrays.py",
    "src/gdm/_checkpoint.py",
    "src/gdm/optimizer/array_update.py",
)


def paths(pattern: str) -> list[str]:
    """The files that a pattern means. In braces there are alternatives."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    if match:
        return [path for one in match[2].split(",") for path in paths(match[1] + one + match[3])]
    found = sorted(ROOT.glob(pattern))
    if not found:
        raise SystemExit(f"no file is called {pattern}: tools/mutants/subjects.py names it")
    return [str(path.relative_to(ROOT)) for path in found]


def subjects() -> dict[str, Subject]:
    """The subject of each file."""
    return {path: subject for subject in SUBJECTS for path in paths(subject.files)}
