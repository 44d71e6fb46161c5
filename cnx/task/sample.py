"""Draw a picture with the ControlNet of a run."""

import re
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from cnx.data.folder import BEHIND_MAP, fit, load_image
from cnx.data.module import to_tensor
from cnx.errors import InputError
from cnx.report import save_image
from cnx.task.run_folder import override_config, read_config
from cnx.task.train import build, say

OWN_KEYS = ("task", "run", "control", "prompt", "negative_prompt", "strength", "out", "seed")


@torch.inference_mode()
def run(cfg: DictConfig) -> None:
    """Draw `cfg.prompt` under the control map `cfg.control` with the run `cfg.run`, and write a PNG.

    For the same seed it is the picture that diffusers' StableDiffusionControlNetPipeline draws, with a DDIMScheduler,
    from the run's `controlnet/` and its base. Raises InputError for a folder that is no finished run and for a map that
    is no image.
    """
    folder = Path(cfg.run)
    trained = read_config(folder)
    if not (folder / "controlnet").is_dir():
        raise InputError(f"{folder}: no controlnet/ there yet; finish the run with python run.py resume={folder}")
    trained = override_config(trained, folder, but=OWN_KEYS)
    size = trained.data.resolution
    control = to_tensor(fit(load_image(cfg.control, BEHIND_MAP), size))[None]

    base, model = build(trained, folder)
    model.load(folder)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    prompt = cfg.default_prompt if cfg.prompt is None else cfg.prompt
    text, null_text = base.encode_text([prompt]), base.encode_text([cfg.negative_prompt])
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(cfg.seed))
    sampler = instantiate(trained.sampler)
    latents = sampler(model, text, null_text, control.to(base.device), noise.to(base.device), cfg.strength)
    picture = base.decode_latents(latents)[0].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()

    out = Path(cfg.out) if cfg.out else folder / "drawn" / f"{_slug(prompt)}_seed{cfg.seed}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_image(Image.fromarray(picture), out)
    say(f"Drew {prompt!r} under {cfg.control}: {out}")


def _slug(prompt: str) -> str:
    return re.sub(r"\W+", "_", prompt).strip("_")[:60] or "no_prompt"
