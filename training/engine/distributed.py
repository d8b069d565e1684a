"""Communication of the processes of a distributed run.

`accelerate launch` starts them; with one process every function here returns its argument.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from training.config.base import ConfigError

# What an accelerate configuration can ask for and training does not support: environment variable, values, name.
UNSUPPORTED = (
    ("ACCELERATE_USE_FSDP", ("true", "1"), "FSDP"),
    ("ACCELERATE_USE_DEEPSPEED", ("true", "1"), "DeepSpeed"),
    ("ACCELERATE_USE_MEGATRON_LM", ("true", "1"), "Megatron-LM"),
    ("ACCELERATE_MIXED_PRECISION", ("fp16", "fp8"), "mixed precision in fp16 or fp8"),
)


def processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_processes() -> int:
    """The number of processes on this machine, by what their launcher states."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or processes()))


def check_launch() -> None:
    """Raise ConfigError if `accelerate launch` was configured for something that training does not support."""
    for variable, values, name in UNSUPPORTED:
        if os.environ.get(variable, "").lower() in values:
            raise ConfigError(
                f"accelerate is configured for {name}, which is not supported: use plain data parallelism (DDP) and "
                "the setting precision."
            )


def state():
    """accelerate's state of the processes; without a GPU they communicate by the CPU."""
    from accelerate import PartialState

    from dinoviz import models

    return PartialState(cpu=models.pick_device().type == "cpu")


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over processes, without gradients; `values` is not modified."""
    if processes() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over processes, without gradients."""
    return total(values) / processes()


def largest(values: torch.Tensor) -> torch.Tensor:
    """The element-wise maximum over processes, without gradients."""
    if processes() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """(B, ...) of each process -> (P * B, ...) of all P, in their order; gradients flow back to each process."""
    if processes() == 1:
        return rows
    return _Gather.apply(rows.contiguous())


class _Gather(torch.autograd.Function):
    """As torch.distributed.nn.functional.all_gather, which is deprecated in favour of private names."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return total(gradient).chunk(processes())[dist.get_rank()]


def close() -> None:
    """Leave the process group; a process that ends without this may be aborted by communication in other threads."""
    if processes() > 1:
        dist.barrier()
        dist.destroy_process_group()
