"""Train a control branch."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from cnx.base import Base
from cnx.callback import Interrupt, MetricsCSV, Probe, RunProgress
from cnx.data.module import ControlData
from cnx.errors import InputError
from cnx.metric import find_convergence
from cnx.model import Full
from cnx.report import grid_over_time
from cnx.task.run_folder import git_commit, new_run_folder, note_choices, override_config, read_config
from cnx.task.training import Training


def run(cfg: DictConfig) -> None:
    """Train as `cfg` says, from the start or from where the run folder `cfg.resume` stands."""
    began = time.perf_counter()
    resume = Path(cfg.resume) if cfg.resume else None
    if resume:
        cfg = resumed_config(resume)
    else:
        note_choices(cfg)
    seed_everything(cfg.seed, verbose=False)

    data: ControlData = instantiate(cfg.data)
    base, model = build(cfg, resume)
    if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu":
        base.to("cuda")  # Lightning would move it only after the images are encoded
    data.prepare(base)
    folder = resume or new_run_folder(cfg)
    if base.path is None:
        base.save(folder / "base")

    training = Training(
        model=model,
        objective=instantiate(cfg.objective),
        optimizer=instantiate(cfg.optimizer),
        null_text=data.null_text,
        prompt_dropout=cfg.prompt_dropout,
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        began=began,
    )
    table = MetricsCSV(folder)
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    if checkpoint:
        table.truncate_after(torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"])
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    name = f"{cfg.name}/{folder.name}"
    loggers = [instantiate(logger)(folder=folder, name=name, config=settings) for logger in cfg.logger.values()]
    callbacks = {name: instantiate(callback) for name, callback in cfg.callback.items()}
    trainer: Trainer = instantiate(
        cfg.trainer,
        callbacks=[*callbacks.values(), RunProgress()],
        logger=[table, *loggers],
        default_root_dir=str(folder),
    )
    trainer.fit(training, datamodule=data, ckpt_path=checkpoint, weights_only=False)

    probe = next((callback for callback in callbacks.values() if isinstance(callback, Probe)), None)
    if not trainer.is_global_zero:
        return
    if any(isinstance(callback, Interrupt) and callback.interrupted for callback in callbacks.values()):
        say(f"Stopped at step {trainer.global_step:,}. To go on: python run.py resume={folder}")
        return
    save_weights(model, folder / "controlnet")
    summary = {
        "experiment": cfg.name,
        **{group: cfg.choices.get(group) for group in ("base", "model", "init", "data", "condition")},
        "seed": cfg.seed,
        "git_commit": git_commit(),
        "data_content": data.content,
        "train_items": len(data.train_items),
        "heldout_items": len(data.heldout_items),
        "skipped_items": len(data.skipped),
        "optimizer_steps": training.global_step,
        "micro_batches": training.micro_batch,
        "samples_seen": training.samples_seen,
        "wall_seconds": round(training.wall_seconds(), 1),
        "images_per_second": round(training.images_per_second(but=probe.seconds if probe else 0), 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "final_loss": training.logged_loss,
        **(fidelity(probe) if probe else {}),
    }
    write_json(folder / "summary.json", summary)
    if probe:
        grid_over_time(folder)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(summary)
            logger.experiment.finish()
    say(closing_line(summary, folder))


def build(cfg: DictConfig, trained: Path | None = None) -> tuple[Base, Full]:
    """The base, and the model around it with the weights that the init gives it.

    For the run in the folder `trained`: a base of its own comes from that folder, where it was saved; no init is
    done, since the branch's weights are there too and the caller loads them.
    """
    own_base = trained / "base" if trained else None
    base = Base.load(str(own_base) if own_base and own_base.is_dir() else cfg.base.path)
    model: Full = instantiate(cfg.model)(base)
    if not trained:
        instantiate(cfg.init)(base, model.branch)
    return base, model


def resumed_config(folder: Path) -> DictConfig:
    """The configuration of the run in `folder`, with the values given beside `resume` on top.

    Raises InputError if the folder is no run or has no checkpoint.
    """
    cfg = read_config(folder)
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        raise InputError(f"{folder}: no checkpoints/last.ckpt, so there is nothing to go on from; start the run anew")
    return override_config(cfg, folder, but=("resume",))


def save_weights(model: Full, folder: Path) -> None:
    """Write the branch in diffusers format, so that `ControlNetModel.from_pretrained(folder)` loads it."""
    model.branch.save_pretrained(folder, safe_serialization=True)


def fidelity(probe: Probe) -> dict[str, Any]:
    """The summary's part on control: the last probe's fidelity, and when the model converged."""
    last, floor, ceiling = probe.history[-1], probe.floor, probe.ceiling
    assert floor is not None and ceiling is not None
    convergence = find_convergence([p.step for p in probe.history], [p.calibrated for p in probe.history])
    return {
        "control_fidelity": {
            "raw": last.raw,
            "floor": floor.raw,
            "ceiling": ceiling.raw,
            "calibrated": last.calibrated,
            "exact": last.exact,
            "exact_floor": floor.exact,
            "exact_ceiling": ceiling.exact,
            "items": probe.items,
        },
        "control_gain": probe.gains[-1].gain,
        "convergence_step": convergence.step,
        "convergence_after": convergence.before,
        "fidelity_25_step": convergence.quarter,
        "fidelity_75_step": convergence.three_quarters,
    }


def closing_line(summary: dict[str, Any], folder: Path) -> str:
    """The run in one line of words."""
    line = f"Run {folder}: {summary['optimizer_steps']:,} steps in {summary['wall_seconds']:.0f} s"
    if "control_fidelity" not in summary:
        return f"{line}."
    reached = summary["control_fidelity"]["calibrated"]
    step, before = summary["convergence_step"], summary["convergence_after"]
    if step is None:
        verdict = "not converged"
    else:
        verdict = f"converged at step {step:,}" + (f" (after {before:,})" if before is not None else "")
    return f"{line}; control fidelity {reached:.2f} (0 ignores the map, 1 is this VAE's best); {verdict}."


def say(line: str) -> None:
    """Print one line as it is, so that a path in it can be copied."""
    rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)


def peak_memory_bytes() -> int | None:
    """The most memory held so far: the device's on CUDA, else the process's resident set; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # kilobytes on Linux


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that `path` holds the whole of it or what was there before."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
