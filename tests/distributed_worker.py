"""What the ranks of test_torch_distributed.py run. Each function returns what the test compares."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import gdm
from distributed_problem import Course, Model, Result, Spec, batch, names, state_arrays, train, whole
from gdm.torch.native_step import NativeStep


def refuse(*_: Any) -> None:
    raise AssertionError("gdm has left a parameter to PyTorch")


# gdm's own code makes each step of these tests.
NativeStep._step_by_torch = refuse

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def stepped_by(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of the class that is tested: within ZeRO the one that has this rank's part of the states."""
    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, course: Course) -> Result:
    return train(model, optimizer, course, dist.get_rank(), dist.get_world_size())


def finished(model: nn.Module, optimizer: torch.optim.Optimizer, course: Course) -> Result:
    """The result of a training on this rank, with the states and with the numbers of elements that lie here."""
    result = trained(model, optimizer, course)
    stepped = stepped_by(optimizer)
    result.extra["state"] = state_arrays(model, stepped)
    result.extra["local_params"] = local_elements(model.parameters())
    result.extra["local_states"] = sum(local_elements(state.values()) for state in stepped.state.values())
    return result


def local_elements(tensors: Any) -> int:
    """Without counts of steps and the like, which have no dimension."""
    local = [x.to_local() if isinstance(x, DTensor) else x for x in tensors if isinstance(x, torch.Tensor) and x.dim()]
    return sum(x.numel() for x in local)


# ---- DistributedDataParallel ----


def ddp(spec: Spec, course: Course, **options: Any) -> Result:
    model = DistributedDataParallel(Model(dtype=course.dtype), **options)
    return finished(model, spec.make(model.parameters()), course)


# ---- ZeroRedundancyOptimizer ----


def zero_optimizer(spec: Spec, params: Any, **options: Any) -> ZeroRedundancyOptimizer:
    return ZeroRedundancyOptimizer(params, optimizer_class=spec.cls(), **options, **spec.arguments())


def zero(spec: Spec, course: Course, **options: Any) -> Result:
    model = DistributedDataParallel(Model(dtype=course.dtype))
    optimizer = zero_optimizer(spec, model.parameters(), **options)
    return finished(model, optimizer, course)


def zero_groups(spec: Spec, before: Course, after: Course, group: dict[str, Any], **options: Any) -> Result:
    """The last block is added, as a group with options of its own, after some steps."""
    model = DistributedDataParallel(Model())
    *blocks, last = model.module.blocks
    optimizer = zero_optimizer(spec, [param for block in blocks for param in block.parameters()], **options)
    trained(model, optimizer, before)
    optimizer.add_param_group({"params": list(last.parameters()), **group})
    return finished(model, optimizer, after)


def zero_consolidated(spec: Spec, before: Course, after: Course, **options: Any) -> Result:
    """The state goes through rank 0 to other optimizers of other models, which go on."""
    first = DistributedDataParallel(Model())
    optimizer = zero_optimizer(spec, first.parameters(), **options)
    trained(first, optimizer, before)
    optimizer.consolidate_state_dict(to=0)
    state = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    consolidated = state_by_name(first, state[0]) if dist.get_rank() == 0 else None
    dist.broadcast_object_list(state, src=0)

    second = DistributedDataParallel(Model(seed=100))
    second.load_state_dict(first.state_dict())
    optimizer = zero_optimizer(spec, second.parameters(), **options)
    optimizer.load_state_dict(state[0])
    result = finished(second, optimizer, after)
    result.extra["consolidated"] = consolidated
    return result


def state_by_name(model: nn.Module, state_dict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tensors of a state of an optimizer, which numbers the parameters."""
    return {
        name: {key: whole(value) for key, value in state_dict["state"].get(i, {}).items()}
        for i, name in enumerate(names(model))
    }


# ---- FSDP2 ----


def sharded(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    cpu_offload: bool = False,
    mixed_precision: bool = False,
    reshard_after_forward: bool = True,
) -> Model:
    """Each block is a unit of its own, and the parameters are DTensors."""
    model = Model(seed, dtype)
    options = {
        "mesh": init_device_mesh("cpu", (dist.get_world_size(),)),
        # The memory can only be pinned for an accelerator.
        "offload_policy": CPUOffloadPolicy(pin_memory=False) if cpu_offload else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed_precision else MixedPrecisionPolicy(),
        "reshard_after_forward": reshard_after_forward,
    }
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def fsdp_by_reference(spec: Spec, course: Course) -> Result:
    """As without the compiled module."""
    before = gdm.backend()
    gdm.set_backend("reference")
    try:
        return fsdp(spec, course)
    finally:
        gdm.set_backend(before)


def fsdp(spec: Spec, course: Course, **options: Any) -> Result:
    model = sharded(dtype=course.dtype, **options)
    optimizer = spec.make(model.parameters())
    result = finished(model, optimizer, course)
    result.extra["empty"] = [name for name, param in names(model).items() if not param.to_local().numel()]
    result.extra["unlike"] = [
        f"{name} {key}"
        for name, param in names(model).items()
        for key, state in optimizer.state[param].items()
        if isinstance(state, torch.Tensor) and state.dim() and not is_sharded_like(state, param)
    ]
    return result


def fsdp_in_backward(spec: Spec, course: Course) -> dict[str, Any]:
    model = sharded()
    optimizers = {param: spec.make([param]) for param in model.parameters()}

    def step(param: torch.Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(step)
    for i in course.steps:
        model(batch(i, course.uses, course.dtype, dist.get_rank(), dist.get_world_size())).backward()
    return {name: whole(param) for name, param in names(model).items()}


def first_fsdp(spec: Spec, course: Course) -> dict[str, Any]:
    model = FullyShardedDataParallel(Model(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = spec.make(model.parameters())
    for i in course.steps:
        optimizer.zero_grad()
        model(batch(i, course.uses, course.dtype, dist.get_rank(), dist.get_world_size())).backward()
        optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        # Copies: the memory of a tensor that NumPy has seen can no longer be freed.
        return {name: param.detach().clone().numpy() for name, param in names(model.module).items()}


def is_sharded_like(state: torch.Tensor, param: DTensor) -> bool:
    return (
        isinstance(state, DTensor)
        and (state.shape, state.stride(), state.dtype) == (param.shape, param.stride(), param.dtype)
        and (state.placements, state.device_mesh) == (param.placements, param.device_mesh)
        and state.to_local().shape == param.to_local().shape
    )


# ---- checkpoints ----

# Names of parameters in place of numbers.
BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


def made(engine: str, spec: Spec, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = sharded(seed=seed) if engine == "fsdp" else DistributedDataParallel(Model(seed))
    if engine == "zero":
        # ZeRO puts its own keywords into the groups, where other engines' checkpoints have no "threads".
        cls = functools.partial(spec.cls(), threads=1)
        return model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, **spec.options)
    return model, spec.make(model.parameters())


def save(engine: str, spec: Spec, course: Course, folder: str, by_name: bool = False) -> dict[str, Any]:
    """Trains, then saves; returns the whole state, which is on rank 0 only."""
    model, optimizer = made(engine, spec, seed=0)
    result = trained(model, optimizer, course)
    options = BY_NAME if by_name else None
    model_state, optimizer_state = get_state_dict(model, stepped_by(optimizer), options=options)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    full = {} if engine == "zero" else get_optimizer_state_dict(model, optimizer, options=FULL)
    return {"params": result.params, "optimizer": as_arrays(full)}


def resume(engine: str, spec: Spec, course: Course, folder: str, by_name: bool = False) -> Result:
    """Loads into another model, and goes on."""
    model, optimizer = made(engine, spec, seed=100)
    options = BY_NAME if by_name else None
    model_state, optimizer_state = get_state_dict(model, stepped_by(optimizer), options=options)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model,
        stepped_by(optimizer),
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )
    return finished(model, optimizer, course)


def resume_full(spec: Spec, before: Course, after: Course) -> Result:
    """The whole state goes from rank 0 to all ranks."""
    first, second = sharded(seed=0), sharded(seed=100)
    optimizer = spec.make(first.parameters())
    trained(first, optimizer, before)
    full = get_optimizer_state_dict(first, optimizer, options=FULL)
    second.load_state_dict(first.state_dict())
    optimizer = spec.make(second.parameters())
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(second, optimizer, full if dist.get_rank() == 0 else {}, options=options)
    return finished(second, optimizer, after)


def as_arrays(value: Any) -> Any:
    """A nested state with arrays in place of tensors."""
    if isinstance(value, dict):
        return {key: as_arrays(x) for key, x in value.items()}
    if isinstance(value, list):
        return [as_arrays(x) for x in value]
    return whole(value) if isinstance(value, torch.Tensor) else value
