"""The same predictions as the original's, from weights by the original's names.

What the original computes is written down here anew, from the papers (arXiv 2112.10752, appendix E; 2302.05543, section
3) and the names of its weights: what a place in the network does is seen by the names that it has.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnx.base import Base
from cnx.base.original import UNET
from cnx.model import Full
from cnx.model.original import CONTROL, control_names
from cnx.sampler import Control, GuessWeights

HINT = (16, 32, 96, 256)
Weights = dict[str, Tensor]


class Original:
    """One network of the original: a UNet or a ControlNet."""

    def __init__(self, weights: Weights, prefix: str, heads: int | None) -> None:
        self.weights = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        self.heads = heads  # None: one for 64 channels

    def has(self, name: str) -> bool:
        return name in self.weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    def group_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def time(self, t: Tensor) -> Tensor:
        half = self.weights["time_embed.0.weight"].shape[1] // 2
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        return self.linear(
            "time_embed.2", F.silu(self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1)))
        )

    def resnet(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv(f"{name}.in_layers.2", F.silu(self.group_norm(f"{name}.in_layers.0", x, 1e-5)))
        h = h + self.linear(f"{name}.emb_layers.1", F.silu(time))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", F.silu(self.group_norm(f"{name}.out_layers.0", h, 1e-5)))
        return h + (self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection.weight") else x)

    def attention(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        heads = self.heads or x.shape[-1] // 64
        q, k, v = (
            self.linear(f"{name}.to_{part}", of).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, of in (("q", x), ("k", context), ("v", context))
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(f"{name}.to_out.0", mixed.transpose(1, 2).flatten(2))

    def transformer(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        h, linear = self.group_norm(f"{name}.norm", x, 1e-6), self.weights[f"{name}.proj_in.weight"].ndim == 2
        h = h if linear else self.conv(f"{name}.proj_in", h)
        h = h.flatten(2).transpose(1, 2)
        h = self.linear(f"{name}.proj_in", h) if linear else h
        block = f"{name}.transformer_blocks.0"
        normed = self.layer_norm(f"{block}.norm1", h)
        h = h + self.attention(f"{block}.attn1", normed, normed)
        h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), text)
        value, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h)).chunk(2, -1)
        h = h + self.linear(f"{block}.ff.net.2", value * F.gelu(gate))
        h = self.linear(f"{name}.proj_out", h) if linear else h
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + (h if linear else self.conv(f"{name}.proj_out", h))

    def place(self, name: str, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """All layers of one place, `input_blocks.3` for one."""
        for layer in range(3):
            at = f"{name}.{layer}"
            if self.has(f"{at}.in_layers.0.weight"):
                x = self.resnet(at, x, time)
            elif self.has(f"{at}.proj_in.weight"):
                x = self.transformer(at, x, text)
            elif self.has(f"{at}.op.weight"):
                x = self.conv(f"{at}.op", x, stride=2)
            elif self.has(f"{at}.conv.weight"):
                x = self.conv(f"{at}.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
            elif self.has(f"{at}.weight"):
                x = self.conv(at, x)
        return x

    def places(self, name: str) -> list[str]:
        count = 1 + max(int(key.split(".")[1]) for key in self.weights if key.startswith(f"{name}."))
        return [f"{name}.{place}" for place in range(count)]


def original_control(net: Original, x_t: Tensor, t: Tensor, text: Tensor, control: Tensor) -> list[Tensor]:
    """What the branch adds: to each skip, in the encoder's order, and last to the middle."""
    hint, places = control, [p for p in net.places("input_hint_block") if net.has(f"{p}.weight")]
    for place in places:
        stride = 2 if places.index(place) in (2, 4, 6) else 1
        hint = net.conv(place, hint, stride)
        hint = hint if place == places[-1] else F.silu(hint)
    time, h, added = net.time(t), x_t, []
    for index, place in enumerate(net.places("input_blocks")):
        h = net.place(place, h, time, text) + (hint if index == 0 else 0)
        added.append(net.place(f"zero_convs.{index}", h, time, text))
    h = net.place("middle_block", h, time, text)
    return [*added, net.place("middle_block_out", h, time, text)]


def original_eps(
    net: Original, x_t: Tensor, t: Tensor, text: Tensor, added: list[Tensor] | None, only_mid: bool = False
) -> Tensor:
    time, h, skips = net.time(t), x_t, []
    for place in net.places("input_blocks"):
        h = net.place(place, h, time, text)
        skips.append(h)
    h = net.place("middle_block", h, time, text)
    added = list(added or [])
    h = h + added.pop() if added else h
    for place in net.places("output_blocks"):
        skip = skips.pop()
        skip = skip + added.pop() if added and not only_mid else skip
        h = net.place(place, torch.cat([h, skip], 1), time, text)
    return net.conv("out.2", F.silu(net.group_norm("out.0", h, 1e-5)))


@pytest.fixture(scope="module")
def model(small: Base, scatter: Callable[[nn.Module], None]) -> Full:
    torch.manual_seed(1)
    model = Full(copy.deepcopy(small), HINT)
    scatter(model.branch)
    return model


@pytest.fixture(scope="module")
def nets(version: str, model: Full) -> tuple[Original, Original]:
    """The original's UNet and ControlNet with the model's weights."""
    branch, heads = model.branch.state_dict(), {"sd15": 8, "sd21": None}[version]
    control = {CONTROL + name: branch[ours] for ours, name in control_names(branch).items()}
    return Original(model.base.original_weights(), UNET, heads), Original(control, CONTROL, heads)


@pytest.fixture(scope="module")
def given(small: Base) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "x_t": torch.randn(2, 4, 8, 8, generator=generator),
        "t": torch.tensor([3, 711]),
        "text": small.encode_text(["a bird", "a professional, detailed, high-quality image"]),
        "control": torch.rand(2, 3, 64, 64, generator=generator),
    }


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eps_is_the_original_s_under_full_and_scaled_control_and_under_none(
    model: Full, nets: tuple[Original, Original], given: dict[str, Tensor]
) -> None:
    unet, control = nets
    x_t, t, text = given["x_t"], given["t"], given["text"]
    added = original_control(control, **given)
    assert len(added) == 13 and all(link.std() > 1e-4 for link in added)
    for strength in (1.0, 0.7):
        close(model(**given, strength=strength), original_eps(unet, x_t, t, text, [strength * link for link in added]))
    close(model(**given, strength=0), original_eps(unet, x_t, t, text, None))
    full, none = model(**given), model(**given, strength=0)
    assert (full - none).abs().max() > 1e-3  # control is not lost in rounding


@torch.no_grad()
def test_eps_is_the_original_s_in_guess_mode(
    model: Full, nets: tuple[Original, Original], given: dict[str, Tensor]
) -> None:
    unet, control = nets
    x_t, t, text = given["x_t"], given["t"], given["text"]
    null = model.base.encode_text([""]).expand_as(text)
    strength = 1.3
    guess = Control(model, given["control"], strength, conditional_only=True, weights=GuessWeights())
    both, twice, texts = torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null, text])
    without, under = model.linked(both, twice, texts, guess.links(both, twice, texts)).chunk(2)
    added = original_control(control, **given)
    scaled = [strength * 0.825 ** (12 - i) * link for i, link in enumerate(added)]
    close(under, original_eps(unet, x_t, t, text, scaled))
    close(without, original_eps(unet, x_t, t, null, None))


@torch.no_grad()
def test_eps_is_the_original_s_with_the_middle_linked_alone(
    model: Full, nets: tuple[Original, Original], given: dict[str, Tensor]
) -> None:
    unet, control = nets
    added = original_control(control, **given)
    links = model.control(**given)
    ours = model.linked(given["x_t"], given["t"], given["text"], type(links)((), links.mid))
    close(ours, original_eps(unet, given["x_t"], given["t"], given["text"], added, only_mid=True))
