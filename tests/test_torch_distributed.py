"""gdm's optimizers for PyTorch in several processes: each rank ends with the bits of a training in one process.

The promise is about the optimizer: the same gradients give the same bits, however parameters and states are
distributed. In general an average over ranks rounds, in an order that depends on their number. The gradients of
distributed_problem.py are such that nothing is rounded, so they are the same bits for any number of ranks as in one
process. Each test compares the gradients of all steps first: if these differ, it is not the optimizer.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT TESTED: several processes of PyTorch; there is no torch here")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("NOT TESTED: several processes of PyTorch; this torch has no gloo", allow_module_level=True)

from distributed_problem import SPECS, STEPS, Course, Spec, alone, alone_with_group, replay  # noqa: E402
from distributed_ranks import RankError, Ranks  # noqa: E402
from support import assert_same_bits  # noqa: E402

torch.set_num_threads(1)
FIRST, REST = Course(steps=range(8)), Course(steps=range(8, STEPS))


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendezvous")
    groups = {world: Ranks(world, folder) for world in (2, 3)}
    yield groups
    for group in groups.values():
        group.close()


@pytest.fixture(params=[2, 3], ids=lambda world: f"{world}-ranks")
def ranks(request, groups):
    return groups[request.param]


WHOLE = Course()


@functools.cache
def reference(name: str, course: Course = WHOLE):
    return alone(SPECS[name], course)


def with_torchs(spec: Spec) -> Spec:
    return spec._replace(library="torch")


# ---- comparisons ----


def assert_same_arrays(actual, wanted, message: str) -> None:
    assert actual.keys() == wanted.keys(), message
    for name, x in actual.items():
        if x is None or wanted[name] is None:
            assert x is wanted[name], f"{message} {name}"
        else:
            assert_same_bits(x, wanted[name], f"{message} {name}")


def assert_same_states(actual, wanted) -> None:
    assert actual.keys() == wanted.keys()
    for name in actual:
        assert_same_arrays(actual[name], wanted[name], f"state of {name}:")


def assert_same_training(results, wanted) -> None:
    """On each rank the gradients and the parameters are these; and the states, of the parameters that it steps."""
    for rank, result in enumerate(results):
        grads = wanted.grads[-len(result.grads) :]  # a resumed training has made the last steps only
        for step, (actual, expected) in enumerate(zip(result.grads, grads, strict=True)):
            assert_same_arrays(actual, expected, f"rank {rank}: gradient {step}:")
        assert_same_arrays(result.params, wanted.params, f"rank {rank}:")
        state = result.extra["state"]
        assert_same_states(state, {name: wanted.extra["state"][name] for name in state})


def elements_of(states) -> int:
    return sum(x.size for state in states.values() for x in state.values() if x.ndim)


def assert_shared_evenly(results, wanted, imbalance: float) -> None:
    """All ranks together have each state once."""
    total = elements_of(wanted.extra["state"])
    here = [result.extra["local_states"] for result in results]
    assert sum(here) == total
    assert max(here, default=0) <= (1 + imbalance) * total / len(results)


# ---- the problem itself ----


@pytest.mark.parametrize("name", SPECS)
def test_the_training_is_close_to_torchs(name):
    """With the same gradients: a parameter on the edge of a step of the problem's gradient would change it."""
    ours = reference(name)
    theirs = replay(with_torchs(SPECS[name]), ours.grads)
    start = alone(SPECS[name], Course(steps=range(0))).params
    for key, x in ours.params.items():
        np.testing.assert_allclose(x, theirs.params[key], rtol=1e-5, atol=1e-6)
        assert np.abs(x - start[key]).mean() > 0.01


@pytest.mark.parametrize("uses", ["always", "not in some steps", "not on some ranks"])
def test_the_gradients_need_no_rounding(uses):
    """They and their thirds and halves are multiples of 1/64 with few bits, but not all the same."""
    for step in reference("AdamW", Course(uses=uses)).grads:
        for grad in step.values():
            if grad is not None:
                units = np.float64(grad) * 64
                assert np.array_equal(units, np.round(units))
                assert np.abs(units).max() < 2**12
                assert len(grad) < 7 or len(np.unique(grad)) > 1


# ---- DistributedDataParallel ----


@pytest.mark.parametrize("name", SPECS)
def test_ddp(ranks, name):
    results = ranks("ddp", spec=SPECS[name], course=Course())
    assert_same_training(results, reference(name))
    assert all(result.extra["state"].keys() == reference(name).extra["state"].keys() for result in results)


@pytest.mark.parametrize("set_to_none", [True, False], ids=["grads-none", "grads-zeroed"])
@pytest.mark.parametrize("as_view", [True, False], ids=["views", "copies"])
@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_ddp_with_gradients_in_buckets(ranks, name, as_view, set_to_none):
    """With views, the gradients lie in the buckets that are sent, and in other ones after the first step."""
    course = Course(set_to_none=set_to_none)
    results = ranks("ddp", spec=SPECS[name], course=course, gradient_as_bucket_view=as_view)
    assert_same_training(results, reference(name, course))


@pytest.mark.parametrize("as_view", [True, False], ids=["views", "copies"])
@pytest.mark.parametrize("uses", ["not in some steps", "not on some ranks"])
@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_ddp_with_parameters_that_are_not_always_used(ranks, name, uses, as_view):
    """A parameter that no rank has used has no gradient: it is left out of the step."""
    course = Course(uses=uses)
    results = ranks(
        "ddp", spec=SPECS[name], course=course, find_unused_parameters=True, gradient_as_bucket_view=as_view
    )
    assert any(grad is None for step in results[0].grads for grad in step.values())
    assert_same_training(results, reference(name, course))


COURSES = {
    "float64": Course(dtype=torch.float64),
    "one-cycle": Course(schedule="one-cycle"),
    "clipped": Course(clip="value"),
}


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_ddp_courses(ranks, name, course):
    assert_same_training(ranks("ddp", spec=SPECS[name], course=course), reference(name, course))


# ---- ZeroRedundancyOptimizer ----


@pytest.fixture(params=[True, False], ids=["bucket-views", "no-bucket-views"])
def as_view(request):
    return request.param


@pytest.mark.parametrize("name", SPECS)
def test_zero(ranks, name, as_view):
    """Each rank steps its share of the parameters, and has the states of these only."""
    results = ranks("zero", spec=SPECS[name], course=Course(), parameters_as_bucket_view=as_view)
    assert_same_training(results, reference(name))
    assert_shared_evenly(results, reference(name), 0.05)


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_zero_with_a_schedule(ranks, name, as_view):
    course = Course(schedule="cosine")
    results = ranks("zero", spec=SPECS[name], course=course, parameters_as_bucket_view=as_view)
    assert_same_training(results, reference(name, course))


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "Adagrad"])
def test_zero_with_a_group_that_is_added(ranks, name, as_view):
    """With bucket views, all parameters move to other memory then."""
    group = {"lr": 0.005, "weight_decay": 0.0}
    arguments = {"before": FIRST, "after": REST, "group": group}
    results = ranks("zero_groups", spec=SPECS[name], **arguments, parameters_as_bucket_view=as_view)
    assert_same_training(results, alone_with_group(SPECS[name], FIRST, REST, group))


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "NAdam"])
def test_zero_consolidates_and_loads(ranks, name, as_view):
    arguments = {"before": FIRST, "after": REST}
    results = ranks("zero_consolidated", spec=SPECS[name], **arguments, parameters_as_bucket_view=as_view)
    assert_same_states(results[0].extra["consolidated"], reference(name, FIRST).extra["state"])
    assert_same_training(results, reference(name))
    assert_shared_evenly(results, reference(name), 0.05)


# ---- FSDP2 ----


@pytest.fixture(params=[True, False], ids=["cpu-offload", "no-offload"])
def cpu_offload(request):
    return request.param


FSDP_CASES = [(name, False) for name in SPECS] + [(name, True) for name in ("AdamW", "SGD-momentum", "NAdam")]


@pytest.mark.parametrize(("name", "cpu_offload"), FSDP_CASES)
def test_fsdp(ranks, name, cpu_offload):
    """Parameters, gradients and states are DTensors, cut alike; of small parameters some ranks have nothing."""
    results = ranks("fsdp", spec=SPECS[name], course=Course(), cpu_offload=cpu_offload)
    assert_same_training(results, reference(name))
    assert results[-1].extra["empty"]
    assert [result.extra["unlike"] for result in results] == [[]] * ranks.world
    assert_shared_evenly(results, reference(name), 0.05)
    states = elements_of(reference(name).extra["state"]) // sum(x.size for x in reference(name).params.values())
    assert all(result.extra["local_states"] == states * result.extra["local_params"] for result in results)


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_fsdp_courses(ranks, name, course):
    assert_same_training(ranks("fsdp", spec=SPECS[name], course=course), reference(name, course))


def test_fsdp_with_gradients_that_are_zeroed(ranks, cpu_offload):
    course = Course(set_to_none=False)
    results = ranks("fsdp", spec=SPECS["AdamW"], course=course, cpu_offload=cpu_offload)
    assert_same_training(results, reference("AdamW", course))


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_fsdp_with_parameters_that_are_not_always_used(ranks, name):
    course = Course(uses="not in some steps")
    results = ranks("fsdp", spec=SPECS[name], course=course)
    assert any(grad is None for step in results[0].grads for grad in step.values())
    assert_same_training(results, reference(name, course))


def test_fsdp_without_resharding_after_forward(ranks):
    results = ranks("fsdp", spec=SPECS["AdamW"], course=Course(), reshard_after_forward=False)
    assert_same_training(results, reference("AdamW"))


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_fsdp_with_clipped_gradients(ranks, name, cpu_offload):
    """The norm is rounded in an order that depends on the ranks, so the clipped gradients differ in their last bits."""
    course = Course(clip="norm")
    results = ranks("fsdp", spec=SPECS[name], course=course, cpu_offload=cpu_offload)
    assert_same_training(results, replay(SPECS[name], results[0].grads))
    for actual, wanted in zip(results[0].grads, reference(name, course).grads, strict=True):
        assert all(np.allclose(actual[key], wanted[key], rtol=0.05, atol=0.01) for key in actual)
        norm = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in actual.values()))
        assert norm == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_fsdp_by_the_reference(ranks, name):
    assert_same_training(ranks("fsdp_by_reference", spec=SPECS[name], course=Course()), reference(name))


def test_fsdp_with_mixed_precision(ranks):
    """The model computes in bfloat16; the optimizer has float32, of which the gradients are sums."""
    results = ranks("fsdp", spec=SPECS["AdamW"], course=Course(), mixed_precision=True)
    assert_same_training(results, replay(SPECS["AdamW"], results[0].grads))


@pytest.mark.parametrize("state_dtype", [None, "float32"], ids=["states alike", "float32 states"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "NAdam"])
def test_fsdp_with_narrow_parameters(ranks, name, dtype, state_dtype, cpu_offload):
    """The mean of the gradients is rounded to their dtype; all the rest has the same bits as in one process."""
    spec = SPECS[name]._replace(options=SPECS[name].options | {"state_dtype": state_dtype})
    results = ranks("fsdp", spec=spec, course=Course(dtype=dtype), cpu_offload=cpu_offload)
    assert_same_training(results, replay(spec, results[0].grads, dtype))


@pytest.mark.parametrize("name", ["AdamW", "Adagrad"])
def test_fsdp_with_narrow_states_is_saved_and_goes_on(ranks, name, tmp_path):
    spec = SPECS[name]._replace(options=SPECS[name].options | {"state_dtype": "bfloat16"})
    ranks("save", engine="fsdp", spec=spec, course=FIRST, folder=str(tmp_path))
    results = ranks("resume", engine="fsdp", spec=spec, course=REST, folder=str(tmp_path))
    assert_same_training(results, alone(spec, WHOLE))


@pytest.mark.parametrize("by_name", [False, True], ids=["by number", "by name"])
def test_fsdp_with_stochastic_rounding_goes_on_to_the_bit(ranks, by_name, tmp_path):
    """On as many ranks: the random bits depend on how parameters are divided."""
    options = {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 5}
    spec = SPECS["AdamW"]._replace(options=SPECS["AdamW"].options | options)
    wanted = ranks("fsdp", spec=spec, course=WHOLE)
    ranks("save", engine="fsdp", spec=spec, course=FIRST, folder=str(tmp_path), by_name=by_name)
    resumed = ranks("resume", engine="fsdp", spec=spec, course=REST, folder=str(tmp_path), by_name=by_name)
    for result, expected in zip(resumed, wanted, strict=True):
        assert_same_arrays(result.params, expected.params, "")
        assert_same_states(result.extra["state"], expected.extra["state"])


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_fsdp_with_steps_during_the_backward_pass(ranks, name):
    """An optimizer for each parameter, which steps when the gradient is there."""
    for result in ranks("fsdp_in_backward", spec=SPECS[name], course=Course()):
        assert_same_arrays(result, reference(name).params, "")


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
def test_the_first_fsdp(ranks, name):
    """FullyShardedDataParallel: a parameter is a part of a flat buffer, and has one axis."""
    for result in ranks("first_fsdp", spec=SPECS[name], course=Course()):
        assert_same_arrays(result, reference(name).params, "")


# ---- checkpoints ----


ENGINES = [("fsdp", name) for name in SPECS] + [("ddp", name) for name in ("AdamW", "SGD-momentum")]


@pytest.mark.parametrize(("engine", "name"), ENGINES)
def test_a_resumed_training_is_an_uninterrupted_one(ranks, engine, name, tmp_path):
    ranks("save", engine=engine, spec=SPECS[name], course=FIRST, folder=str(tmp_path))
    results = ranks("resume", engine=engine, spec=SPECS[name], course=REST, folder=str(tmp_path))
    assert_same_training(results, reference(name))


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("engines", [("fsdp", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp")], ids="-to-".join)
def test_a_training_is_resumed_by_other_ranks(groups, engines, before, after, tmp_path):
    """The checkpoint does not depend on their number, nor on the engine."""
    groups[before]("save", engine=engines[0], spec=SPECS["AdamW"], course=FIRST, folder=str(tmp_path))
    results = groups[after]("resume", engine=engines[1], spec=SPECS["AdamW"], course=REST, folder=str(tmp_path))
    assert_same_training(results, reference("AdamW"))


@pytest.mark.parametrize("engines", [("zero", "zero"), ("zero", "fsdp"), ("fsdp", "zero")], ids="-to-".join)
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_zero_saves_and_loads_without_consolidation(groups, before, after, engines, tmp_path):
    """Each rank saves the states that it has, by the parameters' names, and loads those that it needs."""
    arguments = {"spec": SPECS["AdamW"], "folder": str(tmp_path), "by_name": True}
    groups[before]("save", engine=engines[0], course=FIRST, **arguments)
    assert_same_training(groups[after]("resume", engine=engines[1], course=REST, **arguments), reference("AdamW"))


@pytest.mark.parametrize(("engine", "name"), ENGINES)
@pytest.mark.parametrize("libraries", [("torch", "gdm"), ("gdm", "torch")], ids="-to-".join)
def test_a_checkpoint_is_loaded_by_the_other_library(groups, engine, libraries, name, tmp_path):
    """gdm.torch and torch.optim read each other's states, and go on as they do in one process."""
    ranks = groups[2]
    before, after = (SPECS[name]._replace(library=library) for library in libraries)
    saved = ranks("save", engine=engine, spec=before, course=FIRST, folder=str(tmp_path))[0]
    results = ranks("resume", engine=engine, spec=after, course=REST, folder=str(tmp_path))
    assert_same_training(results, alone(after, REST, saved))


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "NAdam"])
def test_the_whole_state_is_saved_by_one_rank(ranks, name, tmp_path):
    saved = ranks("save", engine="fsdp", spec=SPECS[name], course=FIRST, folder=str(tmp_path))
    wanted = reference(name, FIRST)
    assert_same_states(saved[0]["optimizer"]["state"], wanted.extra["state"])
    assert [rank["optimizer"] for rank in saved[1:]] == [{}] * (ranks.world - 1)


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "NAdam"])
def test_the_whole_state_is_loaded_from_one_rank(ranks, name):
    results = ranks("resume_full", spec=SPECS[name], before=FIRST, after=REST)
    assert_same_training(results, reference(name))


# ---- the tests' own processes ----


def test_a_failing_rank_is_named_and_nothing_stays_behind(groups):
    ranks = groups[2]
    ranks("ddp", spec=SPECS["SGD"], course=Course(steps=range(1)))
    processes = list(ranks.processes)
    with pytest.raises(RankError, match=r"rank 0: Traceback[\s\S]*NoSuch"):
        ranks("ddp", spec=Spec("NoSuch", {}), course=Course())
    assert [process.exitcode is not None for process in processes] == [True, True]
    assert not ranks.processes
