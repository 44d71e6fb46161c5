"""Draw pictures with the ControlNet of a run, or of several."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from hydra.utils import instantiate
from jaxtyping import UInt8
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnx.condition import Condition, Given, parts_of
from cnx.data.folder import BEHIND_MAP, fit, load_image
from cnx.data.module import to_tensor
from cnx.errors import InputError, check_whole
from cnx.model import Controlled
from cnx.report import drawings_page, save_image
from cnx.sampler import Control, Sampler
from cnx.task.given import (
    Subject,
    as_list,
    for_each,
    read_picture,
    read_prompts,
    read_size,
    read_subjects,
    repeated,
    text,
)  # fmt: skip
from cnx.task.run_folder import git_commit, given_overrides, override_config, overrides_but, read_config
from cnx.task.train import build, count_maps, say

# What conf/task/sample.yaml sets, and `condition`: all else on the command line changes the run's own configuration.
OWN_KEYS = (
    "task", "run", "control", "limit", "prompt_mode", "prompt", "added_prompt", "negative_prompt", "captioner",
    "num_samples", "height", "width", "strength", "control_start", "control_end", "control_mode", "image",
    "image_strength", "mask", "out", "again", "condition", "seed", "default_prompt", "logger",
)  # fmt: skip
# In a picture's line in samples.jsonl: the files, each with its sha256, and what stands there as it was given.
FILES = ("control", "image", "mask")
AS_GIVEN = ("negative_prompt", "strength", "control_start", "control_end", "control_mode", "condition", "image", "mask")
# What grid.png shows at most.
GRID_ROWS, GRID_SAMPLES = 16, 8

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Net:
    """The ControlNet of a finished run; `sha256` of its weights, and `base_sha256` of its base (`Base.fingerprint`)."""

    model: Controlled
    sha256: str
    base_sha256: str


@torch.inference_mode()
def run(cfg: DictConfig) -> None:
    """Draw under every control map of `cfg.control` with the ControlNets of `cfg.run`.

    Picture k of a map grows from the noise of the seed `cfg.seed` + k, whatever is drawn beside it. In the plain case
    it is what diffusers' StableDiffusionControlNetPipeline draws from that seed, with a DDIMScheduler, from the run's
    `controlnet/` and its base.

    Writes to `cfg.out` as it goes: `<map>_seed<seed>.png` and its line in `samples.jsonl`, which holds all that is
    needed to draw it again, `<map>_map.png` where an annotator made the map, and at the end `grid.png`.

    Raises:
        InputError: a folder that is no finished run, a file that is missing or no image, settings that do not fit.
    """
    remembered = _remember(cfg) if cfg.again else None
    check_whole("num_samples", cfg.num_samples)
    check_whole("seed", cfg.seed, least=0, most=2**63 - cfg.num_samples)
    if cfg.limit is not None:
        check_whole("limit", cfg.limit)
    out = _out_folder(cfg)
    drawing = Drawing(cfg, remembered)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={out}: cannot be made ({error.strerror}); give another folder") from error

    todo = [(item, cfg.seed + k) for item in range(len(drawing.subjects)) for k in range(cfg.num_samples)]
    shown: dict[int, list[Pixels]] = {}  # the pictures of each item in the grid
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = rich.get_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(todo))
        for first in range(0, len(todo), drawing.sampler.chunk):
            part = todo[first : first + drawing.sampler.chunk]
            share = len(part) / drawing.sampler.steps
            pictures = drawing.draw(part, on_step=partial(progress.advance, bar, share))
            progress.update(bar, completed=first + len(part))
            for (item, seed), pixels in zip(part, pictures, strict=True):
                drawing.save(item, seed, pixels, out)
                if item < GRID_ROWS:
                    shown.setdefault(item, []).append(pixels)
    save_image(_grid(drawing, shown), out / "grid.png")
    what = f"{len(todo)} pictures" if len(todo) > 1 else repr(drawing.prompts[0])
    say(f"Drew {what} under {', '.join(str(place) for place in as_list(cfg.control))}: {out}")


class Drawing:
    """All that the pictures of one call share, read from `cfg` and checked. Raises InputError.

    Attributes:
        sampler: the run's, unless another is given.
        subjects, prompts: what is drawn, one of each for each item.
        maps: how many control maps each ControlNet takes.
    """

    def __init__(self, cfg: DictConfig, remembered: dict[str, Any] | None) -> None:
        self.cfg, self.runs = cfg, [Path(str(folder)) for folder in as_list(cfg.run)]
        # What changes the runs' own settings: base.path, say.
        self.overrides = remembered.get("overrides", []) if remembered else overrides_but((*OWN_KEYS, "sampler"))
        configs = [trained_config(cfg, folder, self.overrides) for folder in self.runs]
        self.sampler: Sampler = instantiate(configs[0].sampler)
        self.sampler_settings = OmegaConf.to_container(configs[0].sampler, resolve=True)
        self.maps = [count_maps(config) for config in configs]
        self.conditions = _conditions(cfg, sum(self.maps))
        self.annotated = not isinstance(self.conditions[0], Given)
        self.entries = _entries(cfg, len(self.runs))
        self.subjects = read_subjects(cfg, sum(self.maps), self.annotated)
        self.names = _names(self.subjects)
        self.prompts = read_prompts(cfg, self.subjects)
        self.maps_of = lru_cache(maxsize=self.sampler.chunk)(self._read_maps)
        for subject in self.subjects:  # one that cannot be read shows before anything is drawn
            for file in subject.files:
                load_image(file, BEHIND_MAP)

        # What is wrong so far was found before anything large is loaded.
        self.nets = [load_net(config, folder) for config, folder in zip(configs, self.runs, strict=True)]
        _check_weights(cfg, self.nets, remembered)
        self.base = self.nets[0].model.base
        self.height, self.width = read_size(cfg, self.base, configs[0].data.resolution)
        self.picture = read_picture(cfg, self.base, self.height, self.width)
        self._check_steps()
        self.null_text = self.base.encode_text([text(cfg, "negative_prompt")])

    def _check_steps(self) -> None:
        """Raise InputError for more steps than the base was trained on, and for a control that is on in none."""
        steps, trained = self.sampler.steps, self.base.scheduler.config["num_train_timesteps"]
        if steps > trained:
            raise InputError(f"sampler.steps={steps}: the base knows {trained:,} timesteps; give at most as many")
        done = int(steps * self.picture.strength) if self.picture else steps
        if not done:
            assert self.picture
            share = f"image_strength={self.picture.strength:g}"
            raise InputError(f"{share}: less than one of {steps} sampling steps; give a larger share")
        for entry in self.entries:
            control = Control(self.nets[0].model, torch.empty(0), entry["strength"], entry["start"], entry["end"])
            if entry["strength"] and not any(control.is_on(step, done) for step in range(done)):
                raise InputError(
                    f"control_start={entry['start']:g} control_end={entry['end']:g}: between them lies none of the"
                    f" {done} sampling steps; give a wider share, or strength=0 to draw without control"
                )

    def _read_maps(self, item: int) -> list[Pixels]:
        """The item's control maps: those of the first ControlNet, then of the next."""
        pairs = zip(self.conditions, self.subjects[item].files, strict=True)
        return [condition(fit(load_image(file, BEHIND_MAP), self.height, self.width)) for condition, file in pairs]

    @property
    def begun_from(self) -> Pixels | None:
        """The picture to begin from at the size that is drawn; its masked part lighter, which is drawn anew."""
        if self.picture is None:
            return None
        pixels = fit(load_image(self.cfg.image), self.height, self.width)
        if self.picture.mask is None:
            return pixels
        anew = self.picture.mask[0, 0].repeat_interleave(8, 0).repeat_interleave(8, 1).cpu().numpy()
        return np.where(anew[..., None], 255 - (255 - pixels) // 3, pixels)

    def draw(self, part: list[tuple[int, int]], on_step: Callable[[], None]) -> UInt8[np.ndarray, "n h w 3"]:
        """Pictures of (item, seed), drawn at once."""
        device = self.base.device
        controls: list[Control] = []
        first = 0
        for net, entry, taken in zip(self.nets, self.entries, self.maps, strict=True):
            own = slice(first, first + taken)
            maps = torch.stack([to_tensor(np.concatenate(self.maps_of(item)[own], axis=2)) for item, _ in part])
            first += taken
            controls.append(instantiate(self.cfg.control_mode)(model=net.model, maps=maps.to(device), **entry))
        # Each from a generator of its own, on the CPU: the same on every machine and in every batch.
        shape = (1, 4, self.height // 8, self.width // 8)
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for _, seed in part])
        latents = self.sampler.draw(
            self.nets[0].model,
            self.base.encode_text([self.prompts[item] for item, _ in part]),
            self.null_text,
            noise.to(device),
            controls,
            repeated(self.picture, len(part)),
            on_step,
        )
        return self.base.decode_latents(latents).permute(0, 2, 3, 1).mul(255).round().byte().cpu().numpy()

    def save(self, item: int, seed: int, pixels: Pixels, out: Path) -> None:
        """Write a picture, its map where an annotator made it, and its line in samples.jsonl."""
        file = out / f"{self.names[item]}_seed{seed}.png"
        save_image(Image.fromarray(pixels), file)
        if self.annotated:
            for number, control_map in enumerate(self.maps_of(item), start=1):
                end = f"_map{number}.png" if sum(self.maps) > 1 else "_map.png"
                save_image(Image.fromarray(control_map), out / f"{self.names[item]}{end}")
        line = {
            "file": file.name,
            "seed": seed,
            "prompt": self.prompts[item],
            "control": [str(file) for file in self.subjects[item].files],
            **self.settings,
        }
        line |= {f"{key}_sha256": _digests(line[key]) for key in FILES}
        with (out / "samples.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all pictures share, for their lines in samples.jsonl."""
        plain: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return {
            "run": [str(folder) for folder in self.runs],
            "controlnet_sha256": [net.sha256 for net in self.nets],
            "base_sha256": self.nets[0].base_sha256,
            **{key: plain[key] for key in AS_GIVEN},
            "image_strength": self.picture and self.picture.strength,
            "height": self.height,
            "width": self.width,
            "overrides": self.overrides,
            "sampler": self.sampler_settings,
            "device": self.base.device.type,
            "git_commit": git_commit(),
        }


def _digests(files: Any) -> list[str]:
    """sha256 of each file of a line, if it has any."""
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in as_list(files) if file is not None]


def trained_config(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run with `overrides` of it; its sampler is its own unless another is given.

    Raises InputError if the folder is no finished run.
    """
    trained = read_config(folder)
    if not (folder / "controlnet").is_dir():
        raise InputError(f"{folder}: no controlnet/ there yet; finish the run with python run.py resume={folder}")
    # Unresolved, so that guidance is this run's base's.
    sampler = OmegaConf.create(OmegaConf.to_container(cfg.sampler, resolve=False))
    given = given_overrides()
    chosen = bool(cfg.get("again")) or any(override.startswith("sampler=") for override in given)
    trained.sampler = sampler if chosen else OmegaConf.merge(sampler, trained.sampler)
    own = [] if chosen else [override for override in given if override.lstrip("+").startswith("sampler.")]
    return override_config(trained, folder, [*overrides, *own])


def load_net(trained: DictConfig, folder: Path) -> Net:
    """The ControlNet of the run in `folder` with its base, ready to draw, on the GPU if there is one."""
    base, model = build(trained, folder)
    model.load(folder)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    digest = hashlib.sha256()
    for file in sorted((folder / "controlnet").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return Net(model, digest.hexdigest(), base.fingerprint("vae", "text_encoder", "unet"))


def _check_weights(cfg: DictConfig, nets: list[Net], remembered: dict[str, Any] | None) -> None:
    """Raise InputError if the nets stand on different bases, or are not those that a drawing was made with."""
    runs = as_list(cfg.run)
    for place, net in zip(runs, nets, strict=True):
        if net.base_sha256 != nets[0].base_sha256:
            raise InputError(f"run={place}: its base is not that of {runs[0]}; only ControlNets of one base add up")
        net.model.base = nets[0].model.base  # once in memory
    for key, now in (("controlnet_sha256", [net.sha256 for net in nets]), ("base_sha256", nets[0].base_sha256)):
        if remembered and remembered[key] != now:
            raise InputError(f"again={cfg.again}: {key} is another now, so the run's weights have changed since then")


def _conditions(cfg: DictConfig, maps: int) -> list[Condition]:
    """The condition that makes each of so many maps: one for all, or as many. Raises InputError for another number."""
    conditions = parts_of(instantiate(cfg.condition))
    if len(conditions) not in (1, maps):
        raise InputError(
            f"condition: names {len(conditions)} kinds of map, and run={cfg.run} takes {maps} map{'s' * (maps > 1)};"
            " name as many, in the order of the runs"
        )
    return conditions * (maps if len(conditions) == 1 else 1)


def _entries(cfg: DictConfig, nets: int) -> list[dict[str, float]]:
    """Strength, start and end of each ControlNet."""
    columns = [for_each(cfg, key, nets) for key in ("strength", "control_start", "control_end")]
    entries = [{"strength": a, "start": b, "end": c} for a, b, c in zip(*columns, strict=True)]
    for entry in entries:
        if not 0 <= entry["start"] <= entry["end"] <= 1:
            raise InputError(
                f"control_start={entry['start']:g} control_end={entry['end']:g}: must be shares of the sampling steps,"
                " 0 <= control_start <= control_end <= 1"
            )
    return entries


def _remember(cfg: DictConfig) -> dict[str, Any]:
    """The line in samples.jsonl of the picture `cfg.again`; sets `cfg` to what it says. Raises InputError."""
    beside = [override for override in given_overrides() if not re.match(r"(task|again|out|logger)=", override)]
    if beside:
        raise InputError(f"again={cfg.again}: takes nothing beside it but out; leave out {beside[0]}")
    picture = Path(cfg.again)
    listing = picture.with_name("samples.jsonl")
    if not listing.is_file():
        raise InputError(f"again={picture}: no {listing} that says how it was drawn")
    line = next(
        (line for line in map(_parsed, listing.read_text("utf-8").splitlines()) if line.get("file") == picture.name),
        None,
    )
    if line is None:
        raise InputError(f"again={picture}: {listing} has no whole line of {picture.name}")
    for key in ("run", "control", "seed", "prompt", "image_strength", "height", "width", "sampler", *AS_GIVEN):
        if key not in line:
            raise InputError(f"again={picture}: its line in {listing} has no {key}; draw it by its settings")
        OmegaConf.update(cfg, key, line[key], merge=False)
    for key in FILES:
        files = [file for file in as_list(line[key]) if file is not None]
        for file, known in zip(files, line.get(f"{key}_sha256", ()), strict=False):  # none in lines of before
            if not Path(file).is_file():
                raise InputError(f"{file}: is not there, and again={picture} was drawn with it; put it back")
            if _digests(file) != [known]:
                raise InputError(f"{file}: is another file than again={picture} was drawn with; put that one back")
    return line


def _parsed(line: str) -> dict[str, Any]:
    """A line of samples.jsonl; nothing where it has been cut off."""
    try:
        parsed = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _out_folder(cfg: DictConfig) -> Path:
    """The folder to write to, not made yet. Raises InputError if pictures have been drawn there already."""
    if cfg.out is not None:
        out = Path(str(cfg.out))
        if out.is_file() or (out / "samples.jsonl").exists():
            raise InputError(f"out={out}: is there already; give another folder")
        for place in map(Path, map(str, as_list(cfg.control))):
            if out.resolve() == (place if place.is_dir() else place.parent).resolve():
                raise InputError(f"out={out}: holds what is drawn from, control={place}; give another folder")
        return out
    parent = Path(str(as_list(cfg.run)[0])) / "drawn"
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if again == 0 else f"{stamp}-{again}" for again in count())
    return next(parent / name for name in names if not (parent / name).exists())


def _names(subjects: list[Subject]) -> list[str]:
    """A name for each subject: that of its first file, numbered where two files have the same."""
    stems = [subject.files[0].stem for subject in subjects]
    return stems if len(set(stems)) == len(stems) else [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]


def _grid(drawing: Drawing, shown: dict[int, list[Pixels]]) -> Image.Image:
    """A page of the first items' maps and pictures."""
    number, picture = sum(drawing.maps), drawing.begun_from
    rows = [
        [*drawing.maps_of(item), *([] if picture is None else [picture]), *pictures[:GRID_SAMPLES]]
        for item, pictures in shown.items()
    ]
    heads = ["control map"] if number == 1 else [f"control map {each + 1}" for each in range(number)]
    heads += [] if picture is None else ["begun from"]
    given = len(heads)
    heads += [f"seed {drawing.cfg.seed + k}" for k in range(len(rows[0]) - given)]
    columns = [(head, np.stack(column)) for head, column in zip(heads, zip(*rows, strict=True), strict=True)]
    captions = [drawing.prompts[item] or "no prompt" for item in shown]
    title = " + ".join(_run_name(run) for run in drawing.runs)
    return drawings_page(columns[:given], columns[given:], captions, title)


def _run_name(folder: Path) -> str:
    return f"{folder.resolve().parent.name} / {folder.resolve().name}"
