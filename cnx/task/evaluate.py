"""Measure how well the ControlNet of a finished run obeys its maps."""

from functools import partial
from pathlib import Path

import numpy as np
import rich
import torch
from hydra.utils import instantiate
from jaxtyping import UInt8
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from cnx.condition import Condition
from cnx.data.module import ControlData
from cnx.errors import InputError
from cnx.metric import calibrate, is_degenerate
from cnx.sampler import Control, Sampler
from cnx.task.run_folder import git_commit
from cnx.task.sample import load_net, trained_config
from cnx.task.train import say, write_json


@torch.inference_mode()
def run(cfg: DictConfig) -> None:
    """Draw held-out items of the run `cfg.run` with and without control, compare with their maps, and say how well.

    The items, the noise (of `cfg.seed`) and the scale are the probe's: floor, the same noise at strength 0; ceiling,
    the VAE's reconstructions. Writes `evaluation.json` into the run folder, with the standard error of each score's
    mean over the items. Raises InputError for a folder that is no finished run, and where nothing is held out.
    """
    folder = Path(cfg.run)
    trained = trained_config(cfg, folder, but=("task", "run", "num_items", "seed"))
    if cfg.num_items < 1:
        raise InputError(f"num_items={cfg.num_items}: must be at least 1")
    condition: Condition = instantiate(trained.condition)
    sampler: Sampler = instantiate(trained.sampler)
    data: ControlData = instantiate(trained.data)
    net = load_net(trained, folder)
    base, device = net.model.base, net.model.base.device
    data.prepare(base)
    heldout = data.heldout(cfg.num_items)
    count = len(heldout.index)
    noise = torch.randn(heldout.latents.shape, generator=torch.Generator().manual_seed(cfg.seed))

    columns = (TextColumn("drawing"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = rich.get_console()
    names = {"raw": "published", "floor": "published_floor", "ceiling": "published_ceiling"}  # fidelity, and beside it
    scores: dict[str, list[float]] = {name: [] for name in (*names, *names.values())}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        chunks = torch.arange(count).split(sampler.chunk)
        bar = progress.add_task("", total=2 * sampler.steps * len(chunks))
        for part in chunks:
            wanted = _to_uint8(heldout.control[part])
            latents = heldout.latents[part].to(device)
            drawn = {"ceiling": latents}
            for name, strength in (("raw", 1.0), ("floor", 0.0)):
                drawn[name] = sampler.draw(
                    net.model,
                    heldout.text[part].to(device),
                    data.null_text.to(device),
                    noise[part].to(device),
                    [Control(net.model, heldout.control[part].to(device), strength)],
                    on_step=partial(progress.advance, bar),
                )
            for name, published in names.items():
                for image, control_map in zip(_to_uint8(base.decode_latents(drawn[name])), wanted, strict=True):
                    agreement = condition.judge(image, control_map)
                    scores[name].append(agreement.fidelity)
                    scores[published].append(agreement.published)

    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    error = {name: float(np.std(values, ddof=1) / count**0.5) if count > 1 else None for name, values in scores.items()}
    calibrated = calibrate(mean["raw"], mean["floor"], mean["ceiling"])
    result = {
        "run": str(folder),
        "items": count,
        "seed": cfg.seed,
        "control_fidelity": {**mean, "calibrated": calibrated, "measure": condition.measure},
        "standard_error": error,
        "degenerate": is_degenerate(mean["floor"], mean["ceiling"]),
        "sampler": OmegaConf.to_container(trained.sampler, resolve=True),
        "controlnet_sha256": net.sha256,
        "base_sha256": net.base_sha256,
        "git_commit": git_commit(),
    }
    write_json(folder / "evaluation.json", result)
    say(
        f"{folder}: control fidelity {calibrated:z.2f} calibrated on {count} held-out items"
        f" (raw {mean['raw']:z.2f}, floor {mean['floor']:z.2f}, ceiling {mean['ceiling']:z.2f}); in evaluation.json"
    )


def _to_uint8(images: Tensor) -> UInt8[np.ndarray, "n H W 3"]:
    return images.float().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
