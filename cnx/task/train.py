"""Train a control branch."""

import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from cnx.base import Base
from cnx.callback import (
    EarlyVerdict,
    MetricsCSV,
    Phases,
    Probe,
    PromptAblation,
    RunProgress,
    Wandb,
    averaged,
    was_interrupted,
)
from cnx.condition import Condition, Several, parts_of
from cnx.data.module import ControlData
from cnx.errors import InputError, check_whole
from cnx.model import Controlled
from cnx.model.sharding import whole_weights
from cnx.report import grid_over_time
from cnx.report.page import run_report
from cnx.report.saved import SavedRun
from cnx.schedule import Schedule
from cnx.task.fitting import count_micro_batches, economise, find_devices, is_sharded, keep_freed_memory, make_optimizer
from cnx.task.run_folder import (
    git_commit,
    given_overrides,
    new_run_folder,
    note_choices,
    override_config,
    overrides_but,
    read_config,
    save_config,
)
from cnx.task.training import Training

# What of conf/base says where a base is and how to load it.
BASE_KEYS = ("path", "architecture", "trust", "revision", "variant", "token", "cache_dir", "local_files_only")
# What a run is made of, for its summary.
GROUPS = ("base", "model", "init", "data", "condition")


def run(cfg: DictConfig) -> None:
    """Train as `cfg` says, from the start or from where the run folder `cfg.resume` stands."""
    began = time.perf_counter()
    resume = Path(cfg.resume) if cfg.resume else None
    checkpoint = resume / "checkpoints" / "last.ckpt" if resume else None
    if resume and checkpoint:
        cfg = resumed_config(resume)
        step_done = finished_steps(resume, cfg.trainer)
    else:
        note_choices(cfg)
        step_done = 0
    # Killed after its last step, a run still has to be saved and summed up.
    concluded = bool(resume) and is_concluded(resume, step_done)
    processes, device = find_devices(cfg)
    if device.type == "cpu":
        keep_freed_memory()
    accumulated = count_micro_batches(cfg, processes)
    sharded = is_sharded(cfg)
    check_whole("trainer.log_every_n_steps", cfg.trainer.log_every_n_steps)
    # That they can be had is found out before anything is written.
    for make in (make_optimizer, make_schedule):
        make(cfg)
    instantiate(cfg.objective)
    callbacks = {name: instantiate(callback) for name, callback in cfg.callback.items()}
    probe = next((callback for callback in callbacks.values() if isinstance(callback, Probe)), None)
    ablation = next((callback for callback in callbacks.values() if isinstance(callback, PromptAblation)), None)
    verdicts = [callback for callback in callbacks.values() if isinstance(callback, EarlyVerdict)]
    for verdict in verdicts:
        verdict.find_probe(list(callbacks.values()))
        verdict.holds = not concluded
    phases = Phases(cfg.phases)
    phases.check(probed=probe is not None, checkpoint=checkpoint, concluded=concluded)
    seed_everything(cfg.seed, verbose=False)

    data: ControlData = instantiate(cfg.data)
    check_maps(cfg, data)
    data.accumulations = phases.accumulations
    base, model = build(cfg, resume)
    economise(cfg, model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.set_device(device)
        base.to(device)  # Lightning would move it only after the images are encoded
    data.prepare(base)
    # That there is something to draw is found out before anything is written.
    if probe:
        data.heldout(1)
    if ablation:
        ablation.check(data.heldout(ablation.items).prompts)
    folder = resume or new_run_folder(cfg)
    if resume:
        save_config(cfg, resume)
    if base.path is None and not resume:
        base.save(folder / "base")
    if data.skipped:
        (folder / "skipped.txt").write_text("\n".join(data.skipped) + "\n", encoding="utf-8")
    commit = git_commit()
    made_of = " ".join(f"{group}={cfg.choices.get(group)}" for group in GROUPS)
    say(f"Run {folder}: {made_of}; {len(data.train_items):,} training pairs, {len(data.heldout_items):,} held out")

    training = make_training(cfg, model, data, began)
    table = MetricsCSV(folder)
    if resume:
        table.truncate_after(step_done)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    name = f"{cfg.name}/{folder.name}"
    loggers = [instantiate(logger)(folder=folder, name=name, config=settings) for logger in cfg.logger.values()]
    trackers = [logger for logger in loggers if isinstance(logger, Wandb)]
    assert data.content is not None
    for tracker in trackers:
        tracker.use_dataset(f"{cfg.choices.get('data')}", data.content, data.roots, resolution=data.resolution)
    bar = [RunProgress()] if cfg.trainer.get("enable_progress_bar", True) else []
    trainer: Trainer = instantiate(
        cfg.trainer,
        accumulate_grad_batches=accumulated,
        callbacks=[*callbacks.values(), phases, *bar],
        logger=[table, *loggers],
        default_root_dir=str(folder),
    )
    trainer.fit(training, datamodule=data, ckpt_path=checkpoint, weights_only=False)

    # All processes bring their pieces, before the others end.
    pieces = whole_weights(model) if sharded and not was_interrupted(trainer) else None
    if not trainer.is_global_zero:
        return
    if was_interrupted(trainer):
        finish(loggers)
        say(f"Stopped at step {trainer.global_step:,}. To go on: python run.py resume={folder}")
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise KeyboardInterrupt  # whoever stops a sweep does not want its next run
        return
    if pieces:
        wiring = model.wiring()
        model = build(cfg, folder)[1]
        model.rewire(wiring)
        # What is put away is in no piece, and what is in half precision was never trained: both are here already.
        trained = {name: piece for name, piece in pieces.items() if piece.dtype == torch.float32}
        left = model.load_state_dict(trained, strict=False)
        assert not left.unexpected_keys and all(key.startswith("base.") for key in left.missing_keys)
    elif cfg.memory.half_locked and model.base_trained:
        model.restore_locked(Base.load(**own_base_settings(cfg, folder)).unet)
    training.check_weights((pieces or dict(model.named_parameters())).values())
    with averaged(trainer, training):
        model.save(folder)
    watched = sum(watcher.seconds for watcher in (probe, ablation) if watcher)
    summary = {
        "experiment": cfg.name,
        **{group: cfg.choices.get(group) for group in GROUPS},
        "base_path": cfg.base.path,
        "seed": cfg.seed,
        "git_commit": commit,
        "data_content": data.content,
        "train_items": len(data.train_items),
        "heldout_items": len(data.heldout_items),
        "skipped_items": len(data.skipped),
        "optimizer_steps": training.global_step,
        "micro_batches": training.micro_batch,
        "samples_seen": training.samples_seen,
        "wall_seconds": round(training.wall_seconds(), 1),
        "images_per_second": training.images_per_second(but=watched),
        "peak_memory_bytes": peak_memory_bytes(),
        "final_loss": training.logged_loss if training.logged_loss is not None else SavedRun(folder).last_loss,
        "stopped_because": next((verdict.reason for verdict in verdicts if verdict.reason), None),
        **(fidelity(probe, min(probe.items, len(data.heldout_items))) if probe else {}),
        **({"prompt_fidelity": ablation.fidelity} if ablation else {}),
    }
    write_json(folder / "summary.json", summary)
    if probe:
        grid_over_time(folder)
    run_report(folder)
    for tracker in trackers:
        tracker.log_model(folder, summary)
    finish(loggers, summary)
    say(closing_line(summary, folder))


def finish(loggers: list[Any], summary: dict[str, Any] | None = None) -> None:
    """Close the trackers, so that the next run of a sweep opens its own; with what their summary is to hold."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.experiment.summary.update(summary or {})
            logger.experiment.finish()


def build(cfg: DictConfig, trained: Path | None = None) -> tuple[Base, Controlled]:
    """The base, and the model around it with the weights that the init gives it.

    For the run in the folder `trained`: a base of its own comes from that folder, where it was saved; no init is
    done, since the branch's weights are there too and the caller loads them.
    """
    base = Base.load(**(own_base_settings(cfg, trained) if trained else base_settings(cfg)))
    model: Controlled = instantiate(cfg.model)(base, maps=count_maps(cfg))
    if not trained:
        instantiate(cfg.init)(base, model.branch)
    return base, model


def count_maps(cfg: DictConfig) -> int:
    """How many control maps a branch takes: one for each condition of `cfg`."""
    return len(parts_of(instantiate(cfg.condition)))


def check_maps(cfg: DictConfig, data: ControlData) -> None:
    """Raise InputError unless each picture of the data has as many maps as the conditions of `cfg` are."""
    wanted = count_maps(cfg)
    if data.maps != wanted:
        raise InputError(
            f"data.root: gives each picture {data.maps} control map{'s' * (data.maps > 1)}, and condition="
            f"{cfg.choices.get('condition') if cfg.choices else wanted} is of {wanted}; give one data set for each"
            " condition, as condition=[canny,depth] data.root=[<folder of canny maps>,<folder of depth maps>]"
        )


def base_settings(cfg: DictConfig) -> dict[str, Any]:
    """What `Base.load` takes of `cfg.base`. Raises InputError if the variable that should hold a token is not set."""
    chosen = {key: cfg.base.get(key) for key in BASE_KEYS}
    variable = chosen["token"]
    if variable is not None:
        chosen["token"] = os.environ.get(variable)
        if not chosen["token"]:
            raise InputError(f"base.token={variable}: is to name an environment variable that holds the hub's token")
    return {**chosen, "trust": bool(chosen["trust"]), "local_files_only": bool(chosen["local_files_only"])}


def own_base_settings(cfg: DictConfig, run: Path) -> dict[str, Any]:
    """What `Base.load` takes for the base of the run in the folder `run`: its own where it was drawn or trained."""
    settings = base_settings(cfg)
    return settings | {"path": str(run / "base"), "variant": None} if (run / "base").is_dir() else settings


def make_training(cfg: DictConfig, model: Controlled, data: ControlData, began: float | None = None) -> Training:
    """The training of `model` on prepared `data`, as `cfg` says; `began` as in Training."""
    return Training(
        model=model,
        objective=instantiate(cfg.objective),
        optimizer=make_optimizer(cfg),
        null_text=data.null_text,
        prompt_dropout=cfg.prompt_dropout,
        noise_offset=cfg.noise_offset,
        schedule=make_schedule(cfg),
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        began=began,
    )


def make_schedule(cfg: DictConfig) -> Schedule:
    """The learning rate's schedule, as `cfg` says."""
    return Schedule(cfg.warmup_steps, cfg.cooldown, instantiate(cfg.decay))


def resumed_config(folder: Path) -> DictConfig:
    """The configuration of the run in `folder`, with the values given beside `resume` on top.

    Raises InputError if the folder is no run or has no checkpoint.
    """
    cfg = read_config(folder)
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        raise InputError(f"{folder}: no checkpoints/last.ckpt, so there is nothing to go on from; start the run anew")
    for override in given_overrides():
        if re.match(r"\+*(seed|base|optimizer)\b", override):
            raise InputError(f"{override}: a resumed run keeps its own; leave it out, or start a new run")
    return override_config(cfg, folder, overrides_but(("resume",)))


def is_concluded(folder: Path, steps: int) -> bool:
    """Whether the run in `folder` has a summary of its first `steps` steps."""
    return SavedRun(folder).summary.get("optimizer_steps", -1) >= steps


def finished_steps(folder: Path, trainer: DictConfig) -> int:
    """The optimizer steps that the last checkpoint of the run in `folder` has behind it.

    Raises InputError if it cannot be read, or if the run has nothing left to do: no step, and no summary to write.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        done = stored["global_step"]
        epochs = stored["epoch"] + stored["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    except Exception as error:  # whatever a damaged archive or pickle raises
        raise InputError(f"{checkpoint}: cannot be read ({type(error).__name__}); start the run anew") from error
    max_steps, max_epochs = trainer.max_steps, trainer.get("max_epochs")
    own = read_config(folder).trainer
    if not is_concluded(folder, done) and (max_steps, max_epochs) == (own.max_steps, own.get("max_epochs")):
        return done
    if done >= max_steps > 0:
        raise InputError(f"{checkpoint}: the run is finished at step {done}; to go on, give trainer.max_steps=<more>")
    if max_epochs is not None and epochs >= max_epochs > 0:
        raise InputError(
            f"{checkpoint}: the run is finished after {epochs} epochs; to go on, give trainer.max_epochs=<more>"
        )
    return done


def fidelity(probe: Probe, items: int) -> dict[str, Any]:
    """The summary's part on control: the last probe's fidelity on `items` items, and when the model converged."""
    last, floor, ceiling = probe.history[-1], probe.floor, probe.ceiling
    assert floor is not None and ceiling is not None
    convergence = probe.convergence()
    parts = probe.condition.conditions if isinstance(probe.condition, Several) else {}
    return {
        "control_fidelity": {
            "raw": last.raw,
            "floor": floor.raw,
            "ceiling": ceiling.raw,
            "calibrated": last.calibrated,
            "published": last.published,
            "published_floor": floor.published,
            "published_ceiling": ceiling.published,
            "measure": probe.condition.measure,
            "items": items,
            **{name: part_fidelity(probe, name, part) for name, part in parts.items()},
        },
        "control_gain": probe.gains[-1].gain,
        "convergence_step": convergence.step,
        "convergence_after": convergence.before,
        "fidelity_25_step": convergence.quarter,
        "fidelity_75_step": convergence.three_quarters,
        "convergence_lost": convergence.lost,
        "convergence_unconfirmed": convergence.unconfirmed,
        "probe_share": round(probe.share, 4),
    }


def part_fidelity(probe: Probe, name: str, condition: Condition) -> dict[str, Any]:
    """What `fidelity` says of control, of one of several conditions."""
    last, floor, ceiling = probe.history[-1], probe.floor, probe.ceiling
    assert floor is not None and ceiling is not None
    ends = {"floor": floor.parts[name], "ceiling": ceiling.parts[name]}
    return {
        **last.parts[name],
        **{end: own["raw"] for end, own in ends.items()},
        **{f"published_{end}": own["published"] for end, own in ends.items()},
        "measure": condition.measure,
    }


def closing_line(summary: dict[str, Any], folder: Path) -> str:
    """The run in one line of words."""
    steps = summary["optimizer_steps"]
    line = f"Done, {folder}: {steps:,} step{'s' * (steps != 1)} in {summary['wall_seconds']:.0f} s"
    line += f" (stopped early, {summary['stopped_because']})" if summary["stopped_because"] else ""
    if "control_fidelity" not in summary:
        return f"{line}."
    reached = summary["control_fidelity"]["calibrated"]
    reached = f"control fidelity {reached:z.2f} (0 ignores the map, 1 is this VAE's best)"
    if not steps:
        return f"{line}; {reached}."
    step, before = summary["convergence_step"], summary["convergence_after"]
    if step is None:
        since = summary["convergence_unconfirmed"]
        verdict = "not converged" if since is None else f"at 0.5 or more since step {since:,}, which is not confirmed"
    else:
        verdict = f"converged at step {step:,}" + (f" (after {before:,})" if before is not None else "")
        verdict += f", lost at {summary['convergence_lost']:,}" if summary["convergence_lost"] is not None else ""
    line += f"; probes took {summary['probe_share']:.0%} of the time of training"
    return f"{line}; {reached}; {verdict}."


@rank_zero_only
def say(line: str) -> None:
    """Print one line as it is, so that a path in it can be copied."""
    rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)


def peak_memory_bytes() -> int | None:
    """The most memory held: the device's on CUDA, else the whole process's resident set; None where unknown."""
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
