"""What a run will need, before it is started."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import rich
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from cnx.base import Base, find, find_folder
from cnx.callback import Phases
from cnx.callback.phases import CONVERGED
from cnx.data.cache import IMAGES_AT_ONCE
from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.model import Controlled
from cnx.task.fitting import (
    autocast_dtype,
    coders_in_steps,
    count_micro_batches,
    economise,
    is_sharded,
    make_optimizer,
)
from cnx.task.ledger import Ledger, MetaAutocast, MetaNumbers
from cnx.task.run_folder import note_choices
from cnx.task.train import build, count_maps, make_training, peak_memory_bytes

GIB = 2**30
# What is on a device beside tensors, in bytes: a guess on the safe side, not measured.
BESIDE = int(0.75 * GIB)


@dataclass(frozen=True)
class Need:
    """Bytes on each device, by what they are for; numbers of parameters; FLOP of an optimizer step of one device.

    `text` is the number of tokens of a prompt's embedding, and their width.
    """

    trained_parameters: int
    locked_parameters: int
    trained: int
    locked: int
    coders: int
    coders_away: bool
    gradients: int
    optimizer: int
    average: int
    step: int
    drawing: int
    flop: int
    text: tuple[int, int]

    @property
    def standing(self) -> int:
        """Bytes that are there all the time."""
        kept = self.trained + self.locked + self.gradients + self.optimizer + self.average
        return kept + (0 if self.coders_away else self.coders)

    @property
    def training(self) -> int:
        """Bytes at the peak of a training step."""
        return self.standing + self.step

    @property
    def probing(self) -> int:
        """Bytes at the peak of a probe, which is made between two steps."""
        return self.standing + self.drawing

    @property
    def peak(self) -> int:
        """The most bytes that there are at any time."""
        return max(self.training, self.probing)


@dataclass(frozen=True)
class Measured:
    """Seconds of an optimizer step, the median; bytes at the peak, None where they cannot be known."""

    seconds: float
    peak: int | None


def run(cfg: DictConfig) -> None:
    """Say what the run that `cfg` describes will need of memory, disk and time; nothing is trained.

    Memory is found out on tensors without contents, at full size and without the weights; where the base and the
    device are here, a few steps are measured too. Raises InputError as the run itself would.
    """
    note_choices(cfg)
    if not isinstance(cfg.measured_steps, int) or cfg.measured_steps < 0:
        raise InputError(f"measured_steps={cfg.measured_steps}: must be a number of optimizer steps, or 0 for none")
    stages = histories(cfg)
    pairs, prompts = count_pairs(cfg)  # which finds out, too, that micro-batches hold at least one
    processes = _devices(cfg)
    accumulated = count_micro_batches(cfg, processes)
    needs = {begun: estimate(cfg, accumulated, processes, begun) for begun in stages}
    begun, need = max(needs.items(), key=lambda item: item[1].peak)
    measured = None
    if cfg.measured_steps and _can_run(cfg):
        measured = measure(cfg, need.text, begun)
    cache = cache_bytes(cfg, pairs, prompts, need.text)
    show(cfg, need, measured, pairs, cache, accumulated, processes, begun if len(needs) > 1 else None)


def histories(cfg: DictConfig) -> list[tuple[int, ...]]:
    """Which of `cfg.phases`, by their numbers from 1, a run may have behind it at one time or another, as they begin.

    First comes (), none. Left out are phases that change neither links nor what is trained, and those of steps that the
    run does not reach. Raises InputError as the run does for what a phase cannot be.
    """
    phases = Phases(cfg.phases)
    phases.check(probed="probe" in cfg.callback)
    end = cfg.trainer.max_steps if cfg.trainer.max_steps >= 0 else math.inf
    moments = {n: phase["when"] for n, phase in enumerate(phases.phases, 1) if {"links", "unlock"} & phase.keys()}
    converged = [n for n, when in moments.items() if when == CONVERGED]
    dated = sorted((n for n, when in moments.items() if when != CONVERGED and when < end), key=moments.__getitem__)
    # Convergence may come before, between and after the steps that are named.
    orders = [(*dated[:at], *converged, *dated[at:]) for at in range(len(dated) + 1)]
    return list(dict.fromkeys(order[:length] for order in orders for length in range(len(order) + 1)))


def begin_phases(cfg: DictConfig, model: Controlled, begun: Sequence[int]) -> None:
    """Wire `model` as it is once these of `cfg.phases` have begun, in this order."""
    for number in begun:
        phase = cfg.phases[number - 1]
        if "links" in phase:
            model.link(phase.links)
        if "unlock" in phase:
            model.unlock(phase.unlock)


def estimate(cfg: DictConfig, accumulated: int, processes: int = 1, begun: Sequence[int] = ()) -> Need:
    """What each of `processes` devices needs as `cfg` says, with `accumulated` micro-batches to a step.

    `begun` are the numbers of the phases that have begun, in their order. Raises InputError as the run itself would.
    """
    dtype = autocast_dtype(cfg)
    cuda = cfg.trainer.accelerator not in ("cpu",) and (
        cfg.trainer.accelerator in ("gpu", "cuda") or torch.cuda.is_available()
    )
    with torch.device("meta"):
        base = empty_base(cfg)
        model: Controlled = instantiate(cfg.model)(base, maps=count_maps(cfg))
    if cfg.memory.half_locked and dtype:
        model.halve_locked(dtype)
    autocast = MetaAutocast(dtype, cuda)
    if cfg.memory.gradient_checkpointing:
        model.checkpoint_activations(autocast.checkpoint)
    begin_phases(cfg, model, begun)
    model.train()
    objective = instantiate(cfg.objective)
    trained = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    locked = [parameter for parameter in base.unet.parameters() if not parameter.requires_grad]
    coders = [parameter for part in (base.vae, base.text_encoder) for parameter in part.parameters()]
    coders_away = bool(cfg.memory.offload) and not coders_in_steps(cfg)

    rows, side, chunk = cfg.data.batch_size, cfg.data.resolution, cfg.sampler.chunk
    settings: Any = base.text_encoder.config
    text = settings.max_position_embeddings, settings.hidden_size
    ledger, flops = Ledger(), FlopCounterMode(display=False)
    with ledger:
        step = 0
        # In the second pass the first one's gradients are there. FLOP apart: their counter holds what it has counted.
        for counted in (flops, nullcontext()):
            ledger.peak = before = ledger.now
            with counted:
                with MetaAutocast(None, cuda):  # where Lightning brings a batch to its device, there is no autocast yet
                    encode(cfg, base)
                with autocast:
                    batch, eps, t = _random_batch(cfg, text, rows, "meta")
                    loss = objective(model, batch, eps, t).mean()
                if accumulated == 1:
                    model.zero_grad()  # as Lightning does, between forward and backward
                torch.autograd.backward([loss])
            del batch, eps, t, loss
            step = ledger.peak - before
        gradients = _bytes([p.grad for p in trained if p.grad is not None])
        optimizer = optimizer_bytes(cfg, model, processes)
        ledger.peak = before = ledger.now
        with torch.no_grad(), autocast:
            model.eval()
            drawn, *_ = _random_batch(cfg, text, chunk * (1 if cfg.sampler.guidance == 1 else 2), "meta")
            t = torch.zeros(len(drawn.latents), dtype=torch.long, device="meta")
            model(drawn.latents, t, drawn.text, drawn.control)
            drawing = ledger.peak - before
            del drawn
            ledger.peak = before = ledger.now
            base.vae.decode(cast(Any, torch.empty(chunk, 4, side // 8, side // 8, device="meta")))
            away = _bytes(base.vae.parameters()) if coders_away else 0
            drawing = max(drawing, ledger.peak - before + away)
    trained_bytes, locked_bytes = _bytes(trained), _bytes(locked)
    if is_sharded(cfg):
        step += max(map(_gathered, (base.unet, model.branch)))
        drawing += trained_bytes + locked_bytes  # a probe puts all of it together
        trained_bytes, locked_bytes = trained_bytes // processes, locked_bytes // processes
        gradients, optimizer = gradients // processes, optimizer // processes
    return Need(
        trained_parameters=sum(p.numel() for p in trained),
        locked_parameters=sum(p.numel() for p in [*locked, *coders]),
        trained=trained_bytes,
        locked=locked_bytes,
        coders=_bytes(coders),
        coders_away=coders_away,
        gradients=gradients,
        optimizer=optimizer,
        average=_bytes(trained) if "ema" in cfg.callback else 0,
        step=step,
        drawing=drawing,
        flop=flops.get_total_flops() * accumulated,
        text=text,
    )


def _gathered(module: torch.nn.Module) -> int:
    """Bytes of what a sharded UNet or branch has in one piece at a time: two blocks, and what is in no block.

    With the gradients where it is trained, since they are divided only when they are whole.
    """
    blocks = [_bytes(block.parameters()) for block in Controlled.blocks_of(module)]
    outside = _bytes(module.parameters()) - sum(blocks)
    once = outside + sum(sorted(blocks)[-2:])
    return once * (2 if any(parameter.requires_grad for parameter in module.parameters()) else 1)


def empty_base(cfg: DictConfig) -> Base:
    """The base of `cfg` on the device that is the default now, without its weights.

    Shapes are those of the folder in diffusers format that base.path names, where it is here, else those of
    base.architecture. Raises InputError if there is neither.
    """
    folder = find_folder(str(cfg.base.path))
    architecture = cfg.base.get("architecture")
    if folder is not None and (folder / "unet" / "config.json").is_file():
        unet, vae = (
            cast(Any, kind).from_config(cast(Any, kind).load_config(folder / part))
            for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
        scheduler = cast(Any, DDPMScheduler).from_config(cast(Any, DDPMScheduler).load_config(folder / "scheduler"))
    elif architecture is not None:
        unet, vae, text, scheduler = (
            instantiate(architecture[part], _convert_="all") for part in ("unet", "vae", "text_encoder", "scheduler")
        )
    else:
        raise InputError(
            f"base.path={cfg.base.path}: not here, and no base.architecture says its shape; give a local folder, or one"
            " of the bases that have it"
        )
    encoder = CLIPTextModel(cast(Any, text))
    return Base(vae, encoder, cast(Any, None), unet, scheduler)


def encode(cfg: DictConfig, base: Base) -> None:
    """Encode, of a micro-batch, what a step does not find in the cache: pictures, prompts, both or nothing."""
    rows, side, needed = cfg.data.batch_size, cfg.data.resolution, coders_in_steps(cfg)
    settings: Any = base.text_encoder.config
    with torch.no_grad(), torch.device(base.device):
        if "vae" in needed:
            base.vae.encode(cast(Any, torch.zeros(min(rows, IMAGES_AT_ONCE), 3, side, side)))
        if "text_encoder" in needed:
            base.text_encoder(torch.zeros(rows, settings.max_position_embeddings, dtype=torch.long))


def optimizer_bytes(cfg: DictConfig, model: Controlled, processes: int) -> int:
    """Bytes of the state that the optimizer keeps after its first step. Raises InputError if it is not installed."""
    make_optimizer(cfg)
    if "ZeroRedundancy" in cfg.optimizer._target_:  # two float32 of each parameter, divided among the processes
        return 8 * sum(p.numel() for group in model.parameter_groups() for p in group["params"]) // processes
    if str(cfg.optimizer._target_).startswith("bitsandbytes."):
        groups = [parameter.numel() for group in model.parameter_groups() for parameter in group["params"]]
        # Two bytes of state, and two float32 for each block of 256; small tensors keep float32 (its min_8bit_size).
        return sum(2 * n + 8 * math.ceil(n / 256) if n >= 4096 else 8 * n for n in groups)
    plain = OmegaConf.merge(cfg.optimizer, {"fused": False}) if cfg.optimizer.get("fused") else cfg.optimizer
    optimizer = instantiate(plain)(model.parameter_groups())
    with MetaNumbers():
        optimizer.step()
    return _bytes(x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))


def count_pairs(cfg: DictConfig) -> tuple[int, int]:
    """Pairs of the data set, and distinct prompts among them; of scenes, drawn or not, at most so many."""
    data = instantiate(cfg.data)
    if data.scenes is not None:
        count = data.scenes.count if data.limit is None else min(data.limit, data.scenes.count)
        return count, count
    items = data.read()
    return len(items), len({item.prompt for item in items})


def cache_bytes(cfg: DictConfig, pairs: int, prompts: int, text: tuple[int, int]) -> int:
    """Bytes of what `data.cache` keeps of latents and of prompts' embeddings, in half precision."""
    latents = pairs * 4 * (cfg.data.resolution // 8) ** 2 if cfg.data.cache in ("latents", "all") else 0
    embeddings = (prompts + 1) * text[0] * text[1] if cfg.data.cache == "all" else 0
    return 2 * (latents + embeddings)


def measure(cfg: DictConfig, text: tuple[int, int], begun: Sequence[int] = ()) -> Measured:
    """Train on random batches for a few steps; `text` as in Need, `begun` as for `estimate`."""
    cuda = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    beside = 0 if cuda else peak_memory_bytes() or 0  # of Python and its libraries
    base, model = build(cfg)
    economise(cfg, model)
    begin_phases(cfg, model, begun)
    data = Rehearsal(cfg, text, base)
    clock = Clock()
    trainer: Trainer = instantiate(
        cfg.trainer,
        accumulate_grad_batches=count_micro_batches(cfg, _devices(cfg)),
        max_steps=cfg.measured_steps + 2,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(make_training(cfg, model, cast(Any, data)), datamodule=data)
    seconds = sorted(clock.seconds[2:])  # without the first two, which try algorithms out and fill caches
    peak = peak_memory_bytes()
    # No growth says nothing: the process had needed more before.
    return Measured(seconds[len(seconds) // 2], None if peak is None or peak == beside else peak - beside)


class Clock(Callback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = _now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > len(self.seconds):
            self.seconds.append(_now() - self._last)
            self._last = _now()


class Rehearsal(LightningDataModule):
    """Random batches of the run's shapes; what a run encodes in each step, `base` encodes."""

    def __init__(self, cfg: DictConfig, text: tuple[int, int], base: Base) -> None:
        super().__init__()
        self.cfg, self.base = cfg, base
        self.batch = _random_batch(cfg, text, cfg.data.batch_size, "cpu")[0]
        self.null_text = self.batch.text[:1]

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(cast(Dataset[Batch], [self.batch] * 1000), batch_size=None)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        encode(self.cfg, self.base)
        return batch


def _random_batch(cfg: DictConfig, text: tuple[int, int], rows: int, device: str) -> tuple[Batch, Tensor, Tensor]:
    """A batch, noise and timesteps."""
    side = cfg.data.resolution
    with torch.device(device):
        latents, control = torch.randn(rows, 4, side // 8, side // 8), torch.rand(rows, 3 * count_maps(cfg), side, side)
        index, t = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
        return Batch(latents, torch.randn(rows, *text), control, index), torch.randn_like(latents), t


def _devices(cfg: DictConfig) -> int:
    """Devices that `cfg.trainer` asks for, as far as it says so by a number; "auto" counts those that are here."""
    asked, nodes = cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
    if asked in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) * nodes
    return (asked if isinstance(asked, int) else len(list(asked))) * nodes


def _can_run(cfg: DictConfig) -> bool:
    """Whether this machine has the device, and the base's weights are here."""
    device = cfg.trainer.accelerator not in ("gpu", "cuda") or torch.cuda.is_available()
    return device and find(str(cfg.base.path)) is not None and _devices(cfg) == 1


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def show(
    cfg: DictConfig,
    need: Need,
    measured: Measured | None,
    pairs: int,
    cache: int,
    accumulated: int,
    processes: int,
    begun: Sequence[int] | None,
) -> None:
    """Print the plan as tables; `begun` are the phases that it is of, None where none change what is needed."""
    console = rich.get_console()
    made_of = " ".join(f"{group}={cfg.choices.get(group)}" for group in ("base", "model", "trainer", "optimizer"))
    together = cfg.data.batch_size * accumulated * processes
    console.print(
        f"{cfg.name}: {made_of}\n"
        f"A step: {together} pairs at {cfg.data.resolution} px = {accumulated} x micro-batch of {cfg.data.batch_size}"
        + (f" on each of {processes} devices" if processes > 1 else "")
        + f"; precision {cfg.trainer.precision}; {need.flop / 1e12:,.3g} TFLOP a device",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if begun is not None:
        when = "before any begins" if begun == () else f"with phase {' and '.join(map(str, begun))} begun"
        console.print(f"Phases change what the run needs; this is the most, {when}.", highlight=False, soft_wrap=True)
    table = Table("on each device", "what", "GiB", title="Memory, estimated")
    table.columns[2].justify = "right"
    half = " (half precision)" if cfg.memory.half_locked else ""
    kept = "recomputed in the backward pass" if cfg.memory.gradient_checkpointing else "kept for the backward pass"
    place = ", in main memory" if need.coders_away else ", which steps need" if coders_in_steps(cfg) else ""
    rows = (
        ("weights, trained", f"{need.trained_parameters / 1e6:,.1f} M parameters", need.trained),
        ("weights, locked", f"the UNet's{half}", need.locked),
        ("", f"VAE and text encoder{place}", 0 if need.coders_away else need.coders),
        ("gradients", "", need.gradients),
        ("optimizer", str(cfg.optimizer._target_).rpartition(".")[2], need.optimizer),
        *([("average", "of what is trained", need.average)] if need.average else []),
        ("activations", f"{kept}, and what passes", need.step),
    )
    for name, what, size in rows:
        table.add_row(name, what, _gib(size))
    table.add_section()
    table.add_row("training", "at the peak of a step", _gib(need.training))
    table.add_row("probing", f"drawing {cfg.sampler.chunk} at once, between two steps", _gib(need.probing))
    if measured and measured.peak is not None:
        table.add_row(
            "training, measured", f"the estimate is {need.training / measured.peak:.0%} of it", _gib(measured.peak)
        )
    console.print(table)
    console.print(_verdict(cfg, need), highlight=False, markup=False, soft_wrap=True)

    steps = math.ceil(pairs * (1 - cfg.data.heldout) / together)
    lines = [
        f"Data: {pairs:,} pairs, {steps:,} optimizer steps an epoch; the cache takes {_gib(cache)} GiB of disk.",
    ]
    if measured:
        epoch = steps * measured.seconds
        length = (
            f", {cfg.trainer.max_steps:,} steps {_time(cfg.trainer.max_steps * measured.seconds)}"
            if (cfg.trainer.max_steps > 0)
            else ""
        )
        lines.append(
            f"Time: {measured.seconds:.3g} s a step, median of {cfg.measured_steps} measured here on random batches;"
            f" an epoch takes {_time(epoch)}{length}, filling the cache and probes apart."
        )
    else:
        lines.append("Time: not measured; it takes the base's weights and the device (one) on this machine.")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _verdict(cfg: DictConfig, need: Need) -> str:
    """Whether it fits, in words."""
    gib = cfg.memory.device_gib
    if gib is None and torch.cuda.is_available() and cfg.trainer.accelerator != "cpu":
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
    if gib is None:
        return "Whether that fits: give memory.device_gib=<GiB of the device>."
    left = gib * GIB - BESIDE - need.peak
    guess = f"{_gib(BESIDE)} GiB allowed for what CUDA keeps beside tensors (a guess)"
    if left >= 0:
        return f"Fits into {gib:g} GiB with {_gib(left)} GiB to spare, {guess}."
    return (
        f"Does not fit into {gib:g} GiB: {_gib(-left)} GiB too much, {guess}. Smaller: micro_batch, sampler.chunk,"
        " memory.gradient_checkpointing=true, memory.half_locked=true, memory.offload=true, optimizer=adam8bit."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
