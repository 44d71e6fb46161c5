"""A base under the control of a branch: what every model is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from diffusers import ModelMixin
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, Int
from torch import Tensor, nn

from cnx.base import Base
from cnx.errors import InputError
from cnx.model.residuals import Residuals
from cnx.model.saved import read_branch, replaced

Links = Literal["all", "mid"]
Unlock = Literal["decoder", "all"]


class Wiring(TypedDict):
    """How a model is wired and what it trains, for a checkpoint."""

    links: Links
    unlocked: Unlock | None
    base_trained: bool


def hint_widths(base: Base, given: Sequence[int]) -> tuple[int, ...]:
    """The hint encoder's widths. Raises InputError unless they lead from a map's size down to the latents'."""
    wanted = len(base.vae.config["block_out_channels"])
    if len(given) != wanted or not all(isinstance(width, int) and width > 0 for width in given):
        raise InputError(
            f"model.hint_channels={list(given)}: must be {wanted} widths, since the VAE halves {wanted - 1} times"
        )
    return tuple(given)


class _Encoded(nn.Module):
    """Stands for a hint encoder while what it would give is known: a branch runs its own, and takes maps alone."""

    def __init__(self, encoded: Tensor) -> None:
        super().__init__()
        self.encoded = encoded

    def forward(self, control: Tensor) -> Tensor:
        return self.encoded


class Controlled(nn.Module):
    """A base, a trainable control branch, and the links between them (ControlNet, arXiv 2302.05543, section 3.1).

    y = F(x; θ) + Z(F(x + Z(c; θz1); θc); θz2). Which links there are and which part of the base is trained beside the
    branch may change during a run: `link`, `unlock`.

    Args:
        base: the base; locked until `unlock` is called.
        branch: a ControlNetModel, or a module that is called, saved and built as one: `controlnet_cond_embedding`,
            `controlnet_down_blocks` (the skips' zero convolutions) and `controlnet_mid_block`.
        unlocked_lr: learning rate of an unlocked base; None is the branch's.

    Attributes:
        links: "all", or "mid" while only the middle is linked. The skips' zero convolutions then wait in `skips`, at
            zero, and are neither run nor trained.
        unlocked: the part of the base's UNet that is trained now, or None.
        base_trained: whether the base has been trained since it was loaded, so that a run has to save it.
    """

    def __init__(self, base: Base, branch: ModelMixin, unlocked_lr: float | None = None) -> None:
        super().__init__()
        self.base = base
        self.branch: Any = branch.requires_grad_(True)
        self.skips = nn.ModuleList()
        self.links: Links = "all"
        self.unlocked: Unlock | None = None
        self.base_trained = False
        self.unlocked_lr = unlocked_lr
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def link(self, links: Links) -> None:
        """Connect all skips, or the middle alone.

        Skips that are taken away go to zero, and those that are connected again begin there: connecting them changes
        no output.
        """
        if links == self.links:
            return
        self.links = links
        if links == "mid":
            self.skips = self.branch.controlnet_down_blocks
            self.branch.controlnet_down_blocks = nn.ModuleList()
            for parameter in self.skips.requires_grad_(False).parameters():
                nn.init.zeros_(parameter)
        else:
            self.branch.controlnet_down_blocks = self.skips.requires_grad_(True)
            self.skips = nn.ModuleList()

    def unlock(self, part: Unlock | None) -> None:
        """Train a part of the base's UNet too: its decoder, all of it, or None: lock the base.

        "decoder" are the output blocks and the last norm and convolution (the released code's sd_locked=False); "all"
        is the whole UNet (arXiv 2302.05543v1, large-scale training).
        """
        self.unlocked = part
        self.base_trained = self.base_trained or part is not None
        self.base.requires_grad_(False).eval()
        for module in self._unlocked_modules():
            # Out of the half precision that what is locked may be in: weights that are trained are in float32.
            module.float().requires_grad_(True).train(self.training)

    def halve_locked(self, dtype: torch.dtype) -> None:
        """Keep what is locked of the base's UNet in half precision, for a model that is run under autocast to `dtype`.

        What is trained stays in float32. What is unlocked later is trained in float32 from its halved values on.
        """
        for parameter in self.base.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def restore_locked(self, unet: nn.Module) -> None:
        """Undo `halve_locked`, with what it rounded from `unet`, of the base as it was loaded."""
        whole = unet.state_dict()
        for name, parameter in self.base.unet.named_parameters():
            if parameter.dtype != torch.float32:
                parameter.data = whole[name].to(parameter.device, torch.float32)

    def checkpoint_activations(self, how: Callable[..., Any] | None = None) -> None:
        """Keep a block's inputs alone for the backward pass and compute the rest again there (arXiv 1604.06174).

        Gradients are the same to the bit. `how` is called in place of diffusers' checkpoint: (block, *inputs). A light
        branch has too little to keep.
        """
        for part in (self.base.unet, self.branch):
            if part._supports_gradient_checkpointing:
                part.enable_gradient_checkpointing(how)

    def compile_blocks(self, **settings: Any) -> None:
        """torch.compile every residual block and transformer of UNet and branch; `settings` are its keywords.

        Blocks of one shape are compiled once, and what phases change between them needs nothing compiled again.
        """
        blocks = self.blocks_of(self)
        # torch gives up on a function after a few shapes, and all blocks of a kind are one function to it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, len(blocks))
        for block in blocks:
            block.compile(**settings)

    @staticmethod
    def blocks_of(module: nn.Module) -> list[nn.Module]:
        """The residual blocks and transformers in `module`, where nearly all of its weights are."""
        return [part for part in module.modules() if isinstance(part, ResnetBlock2D | BasicTransformerBlock)]

    def _unlocked_modules(self) -> list[nn.Module]:
        unet: Any = self.base.unet
        decoder = [unet.up_blocks, unet.conv_norm_out, unet.conv_out]
        return {None: [], "decoder": decoder, "all": [unet]}[self.unlocked]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained now, as an optimizer takes it: the branch, and what is unlocked of the base."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.branch.parameters() if p.requires_grad]}]
        unlocked = [parameter for parameter in self.base.parameters() if parameter.requires_grad]
        if unlocked:
            groups.append({"params": unlocked, **({} if self.unlocked_lr is None else {"lr": self.unlocked_lr})})
        return groups

    def wiring(self) -> Wiring:
        """What `rewire` takes to bring an equal model into this state."""
        return {"links": self.links, "unlocked": self.unlocked, "base_trained": self.base_trained}

    def rewire(self, wiring: Wiring) -> None:
        self.link(wiring["links"])
        self.unlock(wiring["unlocked"])
        self.base_trained = wiring["base_trained"]

    def train(self, mode: bool = True) -> "Controlled":
        """Switch what is trained; a locked base stays in eval mode."""
        super().train(mode)
        self.base.eval()
        for module in self._unlocked_modules():
            module.train(mode)
        return self

    def encode(self, control: Float[Tensor, "b m H W"]) -> Float[Tensor, "b c h w"]:
        """What the hint encoder makes of control maps in [0, 1], which no noise level, prompt or x_t changes."""
        return self.branch.controlnet_cond_embedding(control.contiguous(memory_format=torch.channels_last))

    def control(
        self,
        x_t: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        control: Float[Tensor, "b m H W"],
        encoded: Float[Tensor, "b c h w"] | None = None,
    ) -> Residuals:
        """Run the control branch on control maps in [0, 1], eight times the latents' side; 3 channels for each.

        With what `encode` made of them the hint encoder is not run again.
        """
        control = control.contiguous(memory_format=torch.channels_last)
        encoder = self.branch.controlnet_cond_embedding
        if encoded is not None:
            self.branch.controlnet_cond_embedding = _Encoded(encoded)
        try:
            down, mid = self.branch(x_t, t, text, control, return_dict=False)
        finally:
            self.branch.controlnet_cond_embedding = encoder
        return Residuals(tuple(down), mid)

    def forward(
        self,
        x_t: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        control: Float[Tensor, "b m H W"],
        strength: float = 1.0,
    ) -> Float[Tensor, "b 4 h w"]:
        """The base's prediction under control; `strength` multiplies every link, and 0 is the base alone."""
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        if strength == 0:
            return self.base.unet(x_t, t, text).sample
        links = self.control(x_t, t, text, control)
        if strength != 1:
            links = links.scaled(strength)
        return self.linked(x_t, t, text, links)

    def linked(
        self, x_t: Float[Tensor, "b 4 h w"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"], links: Residuals
    ) -> Float[Tensor, "b 4 h w"]:
        """The base's prediction with the links' values added to its skips and its middle, or to its middle alone."""
        unet: Any = self.base.unet
        if links.down:
            return unet(
                x_t,
                t,
                text,
                down_block_additional_residuals=links.down,
                mid_block_additional_residual=links.mid,
            ).sample
        # diffusers takes a value for the middle only together with one for every skip.
        added = unet.mid_block.register_forward_hook(lambda module, inputs, output: output + links.mid)
        try:
            return unet(x_t, t, text).sample
        finally:
            added.remove()

    def save(self, folder: Path) -> None:
        """Write what was trained to a run folder: the branch to `controlnet/`, a base that was trained to `base/`.

        All links are written, unconnected ones at zero, which draw the same. A ControlNetModel is in diffusers' format
        then: `ControlNetModel.from_pretrained(folder / "controlnet")` loads it. The base is in diffusers' format too,
        in float32.
        """
        links = self.links
        self.link("all")
        with replaced(folder / "controlnet") as part:
            self.branch.save_pretrained(part, safe_serialization=True)
        self.link(links)
        if self.base_trained:
            with replaced(folder / "base") as part:
                self.base.save(part, dtype=torch.float32)

    def load(self, folder: Path) -> None:
        """Take the branch's weights from the `controlnet/` of a run folder, and link everything.

        Raises InputError if a branch of another kind or of other widths is there.
        """
        self.link("all")
        self.branch.load_state_dict(read_branch(folder / "controlnet", self.branch))
