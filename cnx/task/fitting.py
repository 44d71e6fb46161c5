"""A run made to fit the machine: its devices, its batch, its memory."""

import ctypes
import inspect
import re
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf

from cnx.errors import InputError, check_whole
from cnx.model import Controlled

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next tensors; it speaks to glibc, elsewhere nothing is done.

    By itself glibc hands large blocks back to the kernel, which clears every page again for the next tensor: a quarter
    of the time in which a CPU encodes pictures. A process then stays as large as it was at its largest, and its memory
    has more gaps: for sampling, where blocks of many sizes come and go, they would cost more than is won.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_max, 0)


def find_devices(cfg: DictConfig) -> tuple[int, torch.device]:
    """How many processes train together, as `cfg.trainer` says, each on one device; and the device of this one.

    Raises InputError if this machine or what is installed on it cannot do that.
    """
    trainer = _bare_trainer(cfg)
    return trainer.world_size, trainer.strategy.root_device


def _bare_trainer(cfg: DictConfig) -> Trainer:
    """What `cfg.trainer` comes to on this machine; InputError as in `find_devices`."""
    try:
        return instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, MisconfigurationException | ImportError | ValueError | RuntimeError):
            raise
        asked = ", ".join(
            f"trainer.{key}={cfg.trainer[key]}"
            for key in ("accelerator", "devices", "num_nodes", "precision")
            if cfg.trainer.get(key) is not None
        )
        reason = " ".join(str(cause).split())[:200]
        raise InputError(
            f"{asked}: cannot be had here ({reason}); trainer.accelerator=cpu tries a recipe without its device"
        ) from error


def is_sharded(cfg: DictConfig) -> bool:
    """Whether `cfg.trainer` divides a model's weights among its processes (trainer=fsdp).

    Raises InputError for what such a run cannot have.
    """
    strategy = cfg.trainer.get("strategy")
    target = strategy.get("_target_") if isinstance(strategy, DictConfig) else None
    if target is None or not issubclass(get_class(target), ModelParallelStrategy):
        return False
    if any({"links", "unlock"} & phase.keys() for phase in cfg.phases):
        reason = "a model whose weights are divided cannot change what it links or trains"
        raise InputError(f"trainer=fsdp, phases: {reason}; take trainer=ddp, or model.unlock= from the start")
    if "ema" in cfg.callback:
        raise InputError("trainer=fsdp, average=ema: no average is kept of divided weights; take trainer=ddp")
    if (optimizer := cfg.optimizer.get("_target_")) not in ("torch.optim.AdamW", "torch.optim.Adam"):
        raise InputError(
            f"trainer=fsdp, optimizer._target_={optimizer}: of divided weights only the state of AdamW and Adam is"
            " divided and saved; take optimizer=adamw"
        )
    return True


def count_micro_batches(cfg: DictConfig, processes: int) -> int:
    """Micro-batches of each process in an optimizer step: as given, or as many as `cfg.batch_size` takes.

    Raises InputError if one of them is no number of pairs or micro-batches, if `cfg.batch_size` is no whole number of
    micro-batches of all processes, or if both are given.
    """
    given, batch, micro = cfg.trainer.accumulate_grad_batches, cfg.batch_size, cfg.data.batch_size
    counts = {"batch_size": batch, "micro_batch": micro, "trainer.accumulate_grad_batches": given}
    for key, count in counts.items():
        if count is not None:
            check_whole(key, count)
    if batch is None:
        return given
    if given != 1:
        raise InputError(
            f"batch_size={batch}, trainer.accumulate_grad_batches={given}: the second follows from the first; give one"
        )
    together = micro * processes
    if batch % together:
        fitting = [n for n in range(1, micro + 1) if batch % (n * processes) == 0]
        remedy = f"give micro_batch={fitting[-1]}" if fitting else "give a multiple of that"
        on = f" on each of {processes} devices" if processes > 1 else ""
        raise InputError(f"batch_size={batch}: no whole number of micro-batches of {micro} pairs{on}; {remedy}")
    return batch // together


def autocast_dtype(cfg: DictConfig) -> torch.dtype | None:
    """The half precision that steps compute in under autocast, as `cfg.trainer.precision` says; None for float32.

    Raises InputError for a precision that is not the weights' own float32 beneath, in which no base runs (timesteps are
    embedded in float32), and for memory.half_locked in full precision.
    """
    precision = cfg.trainer.precision
    if precision in HALVES:
        return HALVES[precision]
    if cfg.memory.half_locked:
        raise InputError(
            f"memory.half_locked=true, trainer.precision={precision}: only under one of {', '.join(HALVES)} can what is"
            " locked be in half precision"
        )
    if str(precision) not in ("32-true", "32"):
        raise InputError(
            f"trainer.precision={precision}: what is trained is kept in float32; use 32-true, or compute in half"
            f" precision with {' or '.join(HALVES)}"
        )
    return None


def coders_in_steps(cfg: DictConfig) -> list[str]:
    """Which of vae and text_encoder each step needs, since what they encode is not encoded beforehand."""
    cache, afresh = cfg.data.get("cache"), cfg.data.get("random_crop") or cfg.data.get("random_flip")
    pictures, prompts = afresh or cache not in ("latents", "all"), cache != "all"
    return ["vae"] * bool(pictures) + ["text_encoder"] * prompts


def economise(cfg: DictConfig, model: Controlled) -> None:
    """Make `model` need less of its device, as `cfg.memory` and `cfg.compile` say, after its init.

    Raises InputError as `autocast_dtype` does.
    """
    memory = cfg.memory
    if autocast_dtype(cfg) and memory.half_locked:
        # Lightning's own word for it: on a CPU its 16-mixed is bf16-mixed.
        model.halve_locked(HALVES[_bare_trainer(cfg).precision])
    if memory.gradient_checkpointing:
        model.checkpoint_activations()
    if memory.offload and not coders_in_steps(cfg):  # what each step needs stays at hand
        model.base.put_away()
    if cfg.compile:
        model.compile_blocks()


def make_optimizer(cfg: DictConfig) -> Any:
    """What makes an optimizer of parameters, as `cfg.optimizer` says.

    Raises InputError if there is none of that name, if it comes from a package that is not installed, or does not take
    the keys that it is given; MissingMandatoryValue if a key that it needs is not given.
    """
    # A partial would go without what is missing, and the optimizer take its own default.
    OmegaConf.to_container(cfg.optimizer, throw_on_missing=True)
    target = str(cfg.optimizer.get("_target_"))
    if target.endswith(".ZeroRedundancyOptimizer") and cfg.trainer.get("strategy") in (None, "auto"):
        raise InputError("optimizer=zero: its state is divided among the processes of trainer=ddp; give that too")
    # Lightning cuts no gradients down that a fused optimizer could scale back itself, whether or not it has to.
    plain = {"fused": False} if cfg.trainer.get("gradient_clip_val") and cfg.optimizer.get("fused") else {}
    try:
        make = instantiate(cfg.optimizer, **plain, _convert_="all")  # a checkpoint's lists are to be plain ones
    except InstantiationException as error:
        raise InputError(f"optimizer._target_={target}: {_why_not_here(target, error)}") from error
    try:
        _try_out(make)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", reason):
            key = f"optimizer.{unknown[1]}"
            line = f"{key}={cfg.optimizer.get(unknown[1])}: {target} takes no such key; ~{key} leaves it out"
        else:
            line = f"optimizer: {target} refuses its keys ({reason}); mend optimizer.<key>"
        raise InputError(line) from error
    return make


def _why_not_here(target: str, error: BaseException) -> str:
    """Why Hydra found no `target`, and the remedy; `error` is what it raised."""
    package = target.partition(".")[0]
    chain: BaseException | None = error
    while chain is not None and not (isinstance(chain, ModuleNotFoundError) and chain.name == package):
        chain = chain.__cause__ or chain.__context__
    if chain is None:
        return "there is no such optimizer; give one of torch.optim's, or take optimizer=adamw"
    install = "-e '.[adam8bit]'" if package == "bitsandbytes" else package
    return f"is not installed; pip install {install}, or take optimizer=adamw"


def _try_out(make: partial[Any]) -> None:
    """Make an optimizer of a single weight; raises whatever it has against its keys."""
    if kind := make.keywords.get("optimizer_class"):
        # That of optimizer=zero, which itself cannot be made before the processes know each other.
        own = inspect.signature(make.func).parameters
        make = partial(kind, **{key: value for key, value in make.keywords.items() if key not in own})
    make([torch.nn.Parameter(torch.zeros(1))])
