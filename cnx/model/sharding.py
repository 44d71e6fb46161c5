"""A model's weights divided among processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cnx.model.controlled import Controlled


def shard(model: Controlled, device: torch.device) -> None:
    """Divide the weights of UNet and branch among all processes, each block put together only while it computes.

    Under autocast the half-precision copies that it makes for the backward pass stay whole until then, unless
    activations are checkpointed.
    Gradients and the optimizer's state are divided with them (ZeRO stage 3, arXiv 1910.02054; torch's FSDP2, arXiv
    2304.11277). VAE and text encoder, which seldom work, stay whole. Before the optimizer is made, in every process;
    `device` is its own.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  # what FSDP2 can divide
    for whole in (model.base.unet, model.branch):
        for block in model.blocks_of(whole):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(whole, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def put_together(model: nn.Module) -> Iterator[None]:
    """Within this, each process has all weights of a sharded model and may compute with it alone.

    All processes have to enter it together. A model that is not sharded stays as it is.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole_weights(model: nn.Module) -> Mapping[str, Any]:
    """The whole weights of a sharded model, on the CPU, for the first process; nothing for the others.

    All processes have to ask together.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
