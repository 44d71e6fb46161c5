"""What a training step needs of a device's memory, found out on tensors that have shapes alone."""

import weakref
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

LOWERED = {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm}
# What autocast computes in float32: on CUDA these, on CPU none of them.
RAISED = {F.group_norm, F.layer_norm, F.softmax, F.mse_loss, torch.group_norm, torch.layer_norm}


class Ledger(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are still there.

    Attributes:
        now: bytes.
        peak: the most that there were; set it to `now` to begin anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class MetaAutocast(TorchFunctionMode):
    """Autocast for tensors of the meta device, which has none: as CUDA does it, or as the CPU does.

    Attention is flash attention in any case, which keeps no matrix of weights (as SDPA chooses on every current GPU).

    Args:
        dtype: half precision, or None to compute in full precision.
        cuda: whether to do as CUDA does.
    """

    def __init__(self, dtype: torch.dtype | None, cuda: bool) -> None:
        super().__init__()
        self.dtype, self.cuda = dtype, cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = (self._cast(tensor, self.dtype) for tensor in _attended(*args, **kwargs))
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        if func in LOWERED:
            args, kwargs = self._cast((args, kwargs), self.dtype)
        elif func in RAISED and self.dtype and self.cuda:
            args, kwargs = self._cast((args, kwargs), torch.float32)
        return func(*args, **kwargs)

    def checkpoint(self, block: Any, *inputs: Any) -> Any:
        """torch's checkpoint, which computes again under this mode too."""
        again = MetaAutocast(self.dtype, self.cuda)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again))

    @staticmethod
    def _cast(tree: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None:
            return tree
        return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


class MetaNumbers(TorchDispatchMode):
    """Numbers for tensors of the meta device, which have none: 1 (Adafactor asks for norms, by which it clips)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        return func(*args, **(kwargs or {}))


def _attended(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query, key, value
