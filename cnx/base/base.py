"""The Stable Diffusion that a ControlNet is trained on."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

import cnx
from cnx.base.chunks import in_chunks
from cnx.base.original import (
    CLIP,
    OPEN_CLIP,
    UNET,
    VAE,
    clip_names,
    open_clip_names,
    schedule_buffers,
    to_original,
    unet_names,
    vae_names,
)
from cnx.base.single_file import check_channels, read_single_file
from cnx.base.weights import read_weights, weights_file
from cnx.errors import InputError

PARTS = ("vae", "text_encoder", "unet")
# What training does without, once latents and prompt embeddings are cached.
CODERS = ("vae", "text_encoder")
# What a published pipeline has beside them, and a base does not need.
LEFT_OUT: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
# safetensors' names of numbers that are no integers.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# Settings of a text encoder that say how it was written, not what it is.
PASSING = ("dtype", "transformers_version", "architectures")


class Base(nn.Module):
    """The parts of one Stable Diffusion, locked: in eval mode and without gradients.

    Images are RGB in [0, 1]; latents are scaled to about unit variance, as the UNet sees them. `path` says where the
    base can be loaded from again; None when it exists only here and a run has to save it.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        path: str | None = None,
    ) -> None:
        super().__init__()
        self.vae, self.text_encoder, self.unet = vae, text_encoder, unet
        self.tokenizer, self.scheduler, self.path = tokenizer, scheduler, path
        # Rows that a coder is given at once; less where memory did not do.
        self.at_once: dict[str, int] = dict.fromkeys(CODERS, 64)
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        path: str,
        architecture: Mapping[str, Any] | None = None,
        trust: bool = False,
        dtype: torch.dtype | None = torch.float32,
        **hub: Any,
    ) -> Self:
        """Load a base from `path`: a folder in diffusers format, one file, or a model hub's id like `owner/name`.

        A relative path is looked for in the working directory, then beside the package, where `pretrained/tiny` is.
        A noise schedule that ends in pure noise (zero terminal SNR, Lin et al., arXiv 2305.08891) is taken as the
        base's scheduler has it.

        Args:
            path: where it is.
            architecture: how one file is built, and `trust` whether it may run code: as `read_single_file` takes them.
            dtype: of the weights; None leaves each part's as it is stored.
            hub: `revision`, `variant`, `token`, `cache_dir` and `local_files_only`, as diffusers takes them;
                `variant` counts for a folder too, the others for the hub alone.

        Raises InputError if nothing is there, it is no Stable Diffusion of that architecture, or the hub is silent; if
        it predicts neither noise nor v; or if the schedule ends in pure noise and the base predicts noise, which says
        nothing there.
        """
        found = find(path)
        if found is not None and found.is_file():
            parts = read_single_file(found, architecture, trust, dtype)
        else:
            pipeline = _read_pipeline(path, found, dtype, hub)
            parts = {name: getattr(pipeline, name) for name in (*PARTS, "tokenizer", "scheduler")}
            check_channels(path, parts["unet"].config["in_channels"])
        settings = parts["scheduler"].config
        predicted = settings.get("prediction_type", "epsilon")
        if predicted not in ("epsilon", "v_prediction"):
            raise InputError(
                f"base.path={path}: its scheduler says prediction_type {predicted}; a base for cnx predicts epsilon or"
                " v_prediction"
            )
        if settings.get("rescale_betas_zero_snr") and predicted == "epsilon":
            raise InputError(
                f"base.path={path}: its scheduler has rescale_betas_zero_snr, so its last step is pure noise, and"
                " prediction_type epsilon learns nothing there; give a base that predicts v, or mend the scheduler's"
                " config.json"
            )
        parts["scheduler"] = cast(DDPMScheduler, DDPMScheduler.from_config(settings))
        return cls(**parts, path=path)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the VAE, and so of what it encodes; a locked UNet may be in half precision."""
        return self.vae.dtype

    def put_away(self) -> None:
        """Keep VAE and text encoder in main memory, wherever the base is moved to.

        They come to the UNet's device for the time of a call of `encode_text`, `encode_images` or `decode_latents`.
        """
        for part in CODERS:
            if part in self._modules:
                # No submodule any more, so that neither .to() nor a strategy of several devices takes it along.
                self.__dict__[part] = getattr(self, part).cpu()
                del self._modules[part]

    def take_back(self) -> None:
        """Undo `put_away`."""
        for part in CODERS:
            if part in self.__dict__:
                setattr(self, part, self.__dict__.pop(part).to(self.device))

    @contextmanager
    def _at_hand(self, part: str) -> Iterator[None]:
        away = part in self.__dict__ and self.device.type != "cpu"
        try:
            if away:
                getattr(self, part).to(self.device)
            yield
        finally:
            if away:
                getattr(self, part).cpu()

    def _in_pieces(self, part: str, function: Callable[[Any], Tensor], rows: Any) -> Tensor:
        """`function` of `rows`, as many at once as the device's memory takes; the number is found once and kept."""
        with self._at_hand(part):
            result, self.at_once[part] = in_chunks(lambda i: function(rows[i]), len(rows), self.at_once[part])
        return result

    def encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        """Prompts to the text encoder's last hidden states; longer prompts are cut at the tokenizer's length."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self._in_pieces(
            "text_encoder", lambda ids: self.text_encoder(ids.to(self.device)).last_hidden_state, tokens["input_ids"]
        )

    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 4 h w"]:
        """Images in [0, 1] to latents an eighth their side: the mean of the VAE's posterior, scaled.

        The released ControlNet code draws from the posterior afresh in each step; the mean can be cached, and the
        posterior of a trained VAE is narrow. A deviation.
        """

        def encode(images: Tensor) -> Tensor:
            posterior = self.vae.encode(images.to(self.device, self.dtype) * 2 - 1, return_dict=False)[0]
            return (posterior.mean - self._shift) * self.vae.config["scaling_factor"]

        return self._in_pieces("vae", encode, images)

    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 H W"]:
        """Latents to images in [0, 1], clipped."""

        def decode(latents: Tensor) -> Tensor:
            unscaled = latents.to(self.device, self.dtype) / self.vae.config["scaling_factor"] + self._shift
            return (self.vae.decode(unscaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

        return self._in_pieces("vae", decode, latents)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def fingerprint(self, *parts: str) -> str:
        """SHA-256 over the weights and settings of `parts` (any of vae, text_encoder, unet), as a hex string.

        The tokenizer belongs to the text encoder.
        """
        digest = hashlib.sha256()
        for part in parts:
            module = getattr(self, part)
            settings = module.config.to_dict() if part == "text_encoder" else dict(module.config)
            settings = {key: value for key, value in settings.items() if key not in PASSING and key[0] != "_"}
            if part == "text_encoder":
                settings["tokenizer"] = json.loads(self.tokenizer.backend_tokenizer.to_str())
                for passing in ("padding", "truncation"):  # as the last call left them
                    del settings["tokenizer"][passing]
            digest.update(json.dumps([part, settings], sort_keys=True, default=str).encode())
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                # Halves: a base in half precision and its float32 copy are the same base.
                digest.update(tensor.detach().to("cpu", torch.float16).numpy().tobytes())
        return digest.hexdigest()

    def pipeline(self) -> StableDiffusionPipeline:
        """The same modules as diffusers' own pipeline, with DDIM on this base's noise schedule."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=cast(Any, DDIMScheduler.from_config(self.scheduler.config)),
            safety_checker=cast(Any, None),  # may be None, which its type does not say
            feature_extractor=cast(Any, None),
            requires_safety_checker=False,
        )

    def original_weights(self) -> dict[str, Tensor]:
        """All weights by the names of one file, as the original's ControlLDM loads it, with its noise schedule.

        A text encoder with gelu is written as Stable Diffusion 2's OpenCLIP, else as Stable Diffusion 1's CLIP. Of
        OpenCLIP, what Stable Diffusion 2 does not use is written as zeros: it is not among our weights.
        """
        unet, vae, text = (getattr(self, part).state_dict() for part in ("unet", "vae", "text_encoder"))
        settings = self.text_encoder.config
        open_clip = settings.hidden_act == "gelu"
        written = to_original(unet, unet_names(unet), UNET) | to_original(vae, vae_names(vae), VAE)
        written |= schedule_buffers(self.scheduler.betas)
        if not open_clip:
            positions = torch.arange(settings.max_position_embeddings)[None]
            return written | to_original(text, clip_names(text), CLIP) | {CLIP + "embeddings.position_ids": positions}
        written |= to_original(text, open_clip_names(text), OPEN_CLIP)
        block = OPEN_CLIP + "transformer.resblocks."
        first = {name: tensor for name, tensor in written.items() if name.startswith(block + "0.")}
        last = f"{block}{settings.num_hidden_layers}."
        unused = {last + name.removeprefix(block + "0."): torch.zeros_like(t) for name, t in first.items()}
        width, some = settings.hidden_size, next(iter(first.values()))
        unused[OPEN_CLIP + "text_projection"] = some.new_zeros(width, width)
        unused[OPEN_CLIP + "logit_scale"] = some.new_zeros(())
        return written | unused

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the base to `folder` in diffusers format, in half precision or as `dtype` says, as safetensors."""
        whole = copy.deepcopy(self)
        whole.take_back()
        whole.to(dtype).pipeline().save_pretrained(folder, safe_serialization=True)
        for part in PARTS:
            settings = Path(folder) / part / "config.json"
            written = json.loads(settings.read_text(encoding="utf-8"))
            written.pop("_name_or_path", None)  # where it was loaded from on this machine
            if part == "text_encoder":
                # Without being told, diffusers loads float32, and transformers the dtype that it wrote down.
                written["dtype"] = "float32"
            settings.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def original_weights(path: str, trust: bool = False, **load: Any) -> dict[str, Tensor]:
    """The weights of the base at `path` by the names of one file, in their stored dtypes; settings as `Base.load` has.

    What is one file already is taken as it is, without weights of a moving average and without a ControlNet.
    """
    found = find(path)
    if found is None or found.is_dir():
        return Base.load(path, trust=trust, **load, dtype=None).original_weights()
    Base.load(path, trust=trust, **load, dtype=None)  # that it is a base
    weights, _ = read_weights(found, trust=None if trust else "base.trust=true")
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("model_ema.", "control_model."))}


def find(path: str) -> Path | None:
    """The folder or file `path` here, or else in the repository that this package lies in; None if there is neither."""
    repository = Path(cnx.__file__).parent.parent
    return next((found for found in (Path(path), repository / path) if found.exists()), None)


def find_folder(path: str) -> Path | None:
    """The folder `path` here, or else in the repository that this package lies in; None if there is neither."""
    found = find(path)
    return found if found is not None and found.is_dir() else None


def _read_pipeline(
    path: str, folder: Path | None, dtype: torch.dtype | None, hub: Mapping[str, Any]
) -> StableDiffusionPipeline:
    if folder is not None and not (folder / "model_index.json").is_file():
        raise InputError(f"base.path={path}: no model_index.json in {folder}, so it is no pipeline in diffusers format")
    if folder is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise InputError(f"base.path={path}: no such folder or file, and no hub id of the form owner/name")
    try:
        # The folder of what the hub gave, if it is not here.
        place = folder or Path(StableDiffusionPipeline.download(path, **LEFT_OUT, **hub))
        _check_kind(path, place)
        dtypes: Any = dtype or {part: _stored_dtype(place / part, hub.get("variant")) for part in PARTS}
        return StableDiffusionPipeline.from_pretrained(
            place, torch_dtype=dtypes, variant=hub.get("variant"), local_files_only=True, **LEFT_OUT
        )
    except InputError:
        raise
    except Exception as error:  # diffusers, hub and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        if folder is None:
            remedy = "give a local folder or file, or load it once with a network so that it is cached"
            raise InputError(
                f"base.path={path}: no folder or file here, and not to be had from the hub; {remedy} ({reason})"
            ) from error
        raise InputError(f"base.path={path}: {folder} cannot be loaded ({reason}); fetch or make it again") from error


def _check_kind(path: str, folder: Path) -> None:
    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    if "XL" in kind or not kind.startswith("StableDiffusion") or kind.startswith("StableDiffusion3"):
        name = "SDXL" if "XL" in kind else kind
        raise InputError(f"base.path={path}: is an {name} pipeline; give a Stable Diffusion 1 or 2")


def _stored_dtype(folder: Path, variant: str | None) -> torch.dtype:
    """The dtype that holds all weights in a part's folder exactly; float32 where they are in several files."""
    file = weights_file(folder, variant)
    if file is None:
        return torch.float32
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            names = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        dtypes = {FLOATS[name] for name in names & FLOATS.keys()}
    else:
        weights = read_weights(file, trust="weights in safetensors")[0]
        dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32
