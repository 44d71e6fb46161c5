"""Measure how well the ControlNet of a finished run obeys its maps."""

from functools import partial
from pathlib import Path

import rich
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from cnx.callback.prompt_ablation import in_words, save_prompt_ablation
from cnx.condition import Condition
from cnx.data.module import ControlData
from cnx.data.prompts import PromptMode, read_prompt_modes
from cnx.errors import InputError
from cnx.report.page import run_report
from cnx.report.saved import SavedRun
from cnx.sampler import Sampler
from cnx.sampler.evaluation import evaluate, text_of
from cnx.task.run_folder import git_commit, overrides_but
from cnx.task.sample import load_net, trained_config
from cnx.task.train import check_maps, say, write_json

OWN_KEYS = ("task", "run", "num_items", "prompt_mode", "default_prompt", "seed")


@torch.inference_mode()
def run(cfg: DictConfig) -> None:
    """Draw held-out items of the run `cfg.run` with and without control, compare with their maps, and say how well.

    The items, the noise (of `cfg.seed`) and the scale are the probe's: floor, the same prompts and noise at strength 0;
    ceiling, the VAE's reconstructions. Under one kind of prompt (`cfg.prompt_mode`) it writes `evaluation.json` into
    the run folder, with the standard error of each score's mean over the items; under several what
    `save_prompt_ablation` does, and the run's report anew. Raises InputError for a folder that is no finished run, and
    where nothing is held out.
    """
    folder = Path(cfg.run)
    trained = trained_config(cfg, folder, overrides_but((*OWN_KEYS, "sampler")))
    if cfg.num_items < 1:
        raise InputError(f"num_items={cfg.num_items}: must be at least 1")
    modes = read_prompt_modes(cfg.prompt_mode)
    condition: Condition = instantiate(trained.condition)
    sampler: Sampler = instantiate(trained.sampler)
    data: ControlData = instantiate(trained.data)
    check_maps(trained, data)
    net = load_net(trained, folder)
    data.prepare(net.model.base)
    heldout = data.heldout(cfg.num_items)
    texts: dict[PromptMode, Tensor] = {
        mode: text_of(mode, heldout, data.null_text, net.model, cfg.default_prompt) for mode in modes
    }

    columns = (TextColumn("drawing"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = rich.get_console()
    count = len(heldout.index)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        chunks = -(-count // sampler.chunk)
        bar = progress.add_task("", total=2 * len(modes) * sampler.steps * chunks)
        found = evaluate(
            net.model, sampler, condition, heldout, data.null_text, texts, cfg.seed, partial(progress.advance, bar)
        )

    facts = {
        "run": str(folder),
        "optimizer_steps": SavedRun(folder).summary.get("optimizer_steps"),
        "seed": cfg.seed,
        "sampler": OmegaConf.to_container(trained.sampler, resolve=True),
        "controlnet_sha256": net.sha256,
        "base_sha256": net.base_sha256,
        "git_commit": git_commit(),
    }
    if isinstance(cfg.prompt_mode, str) and cfg.prompt_mode != "all":
        (mode,) = modes
        result = {**facts, "prompt_mode": mode, "items": count, **found[mode].to_json()}
        result["control_fidelity"]["measure"] = condition.measure
        write_json(folder / "evaluation.json", result)
        mean = found[mode].mean
        say(
            f"{folder}: control fidelity {found[mode].calibrated:z.2f} calibrated on {count} held-out items"
            f" (raw {mean['raw']:z.2f}, floor {mean['floor']:z.2f}, ceiling {mean['ceiling']:z.2f}); in evaluation.json"
        )
        return
    save_prompt_ablation(folder, found, heldout, condition, cfg.default_prompt, facts)
    run_report(folder)
    say(f"{folder}: control fidelity {in_words(found)}, on {count} held-out items; in prompts.json and prompts.png")
