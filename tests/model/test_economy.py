"""What makes a model need less of its device changes nothing else."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base, in_chunks
from cnx.init import GaussianControl
from cnx.model import Full, LargeScale, Light
from cnx.model.controlled import Controlled


@pytest.fixture
def model(own_tiny: Base, tiny_conf: DictConfig) -> Full:
    torch.manual_seed(0)
    model = Full(own_tiny, tiny_conf.hint_channels)
    GaussianControl(std=0.05)(own_tiny, model.branch)
    return model.train()


def gradients(model: Controlled, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["full", "large_scale", "lite"])
def test_checkpointed_activations_give_the_same_gradients_to_the_bit(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], kind: str
) -> None:
    torch.manual_seed(0)
    hints = tiny_conf.hint_channels
    models: dict[str, Callable[[], Controlled]] = {
        "full": lambda: Full(own_tiny, hints),
        "large_scale": lambda: LargeScale(own_tiny, hints, unlock="all", unlocked_lr=None),
        "lite": lambda: Light(own_tiny, hints, kernel_size=3),
    }
    model = models[kind]().train()
    GaussianControl(std=0.05)(own_tiny, model.branch)
    plain = gradients(model, inputs)
    calls = 0

    def counted(block: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        return torch.utils.checkpoint.checkpoint(block, *given, use_reentrant=False)

    model.checkpoint_activations(counted)
    again = gradients(model, inputs)
    assert calls > 5
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)
    model.checkpoint_activations()  # diffusers' own way
    assert all(torch.equal(plain[name], tensor) for name, tensor in gradients(model, inputs).items())


@torch.no_grad()
def test_channels_last_gives_the_same_prediction(model: Full, inputs: dict[str, Tensor]) -> None:
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    torch.testing.assert_close(model(**inputs), contiguous(**inputs), rtol=1e-4, atol=1e-5)


def test_attention_is_torch_s_own_fused_one(model: Full) -> None:
    processors = [*model.base.unet.attn_processors.values(), *model.branch.attn_processors.values()]
    assert processors and all(type(processor) is AttnProcessor2_0 for processor in processors)


def test_only_what_is_locked_is_halved_and_trained_weights_stay_float32(model: Full, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model(**inputs)
    model.halve_locked(torch.bfloat16)
    assert {p.dtype for p in model.base.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.branch.parameters()} == {torch.float32}
    assert model.base.dtype == torch.float32, "the VAE's"
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups() for p in group["params"]], lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        halved = model(**inputs)
        halved.float().square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(halved.float(), whole.float(), rtol=0.1, atol=0.1)
    assert {p.dtype for p in model.branch.parameters()} == {torch.float32}
    states = [x for state in optimizer.state.values() for x in state.values() if x.dim()]
    assert {state.dtype for state in states} == {torch.float32}


def test_what_is_unlocked_later_is_trained_in_float32(model: Full) -> None:
    model.halve_locked(torch.bfloat16)
    model.unlock("decoder")
    dtypes = {name.split(".")[0]: p.dtype for name, p in model.base.unet.named_parameters()}
    assert dtypes["up_blocks"] == dtypes["conv_out"] == torch.float32 and dtypes["down_blocks"] == torch.bfloat16
    assert all(p.dtype == torch.float32 for group in model.parameter_groups() for p in group["params"])


def test_coders_that_are_put_away_stay_behind_and_still_code(own_tiny: Base, tmp_path: Path) -> None:
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, text = own_tiny.encode_images(pictures), own_tiny.encode_text(["a bird", ""])
        own_tiny.put_away()
        own_tiny.put_away()  # twice is once
        assert torch.equal(own_tiny.encode_images(pictures), latents)
        assert torch.equal(own_tiny.encode_text(["a bird", ""]), text)
    assert {name.split(".")[0] for name in own_tiny.state_dict()} == {"unet"}, "not in a checkpoint or among processes"
    own_tiny.save(tmp_path, dtype=torch.float32)
    again = Base.load(str(tmp_path))
    assert again.fingerprint("vae", "text_encoder", "unet") == own_tiny.fingerprint("vae", "text_encoder", "unet")

    own_tiny.to("meta")  # stands for a device that this machine has not
    assert own_tiny.device.type == "meta"
    for part in (own_tiny.vae, own_tiny.text_encoder):
        assert {p.device.type for p in part.parameters()} == {"cpu"}


@torch.no_grad()
def test_compiled_blocks_give_the_same_prediction_and_keep_their_names(model: Full, inputs: dict[str, Tensor]) -> None:
    plain, names = model(**inputs), set(model.state_dict())
    compiled: list[int] = []

    def backend(graph: Any, examples: Any) -> Any:
        compiled.append(1)
        return graph.forward

    torch.compiler.reset()
    model.compile_blocks(backend=backend)
    # Where torch gives up on a function, what is left runs as if it were not compiled.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        torch.testing.assert_close(model(**inputs), plain)
    assert compiled and set(model.state_dict()) == names


def test_chunks_are_halved_until_memory_does_and_the_number_is_told() -> None:
    rows, tried = torch.arange(13), []

    def picky(i: slice) -> Tensor:
        tried.append(len(rows[i]))
        if len(rows[i]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows[i] * 2

    result, at_once = in_chunks(picky, 13, 16)
    assert torch.equal(result, rows * 2) and at_once == 3
    assert tried == [13, 6, 3, 3, 3, 3, 1]

    def hopeless(i: slice) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(hopeless, 4, 4)


def test_a_sampler_and_coders_keep_the_number_that_fits(model: Full, inputs: dict[str, Tensor], monkeypatch) -> None:
    from cnx.sampler import DDIM

    def short_of_memory(function: Callable[..., Any], most: int) -> Callable[..., Any]:
        def call(rows: Tensor, *args: Any, **kwargs: Any) -> Any:
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(rows, *args, **kwargs)

        return call

    sampler = DDIM(steps=1, guidance=2.0, chunk=4)
    arguments = (inputs["text"], inputs["text"][1:2], inputs["control"], inputs["x_t"])
    wanted = sampler(model.eval(), *arguments)
    pictures = model.base.decode_latents(wanted)
    monkeypatch.setattr(model.base.unet, "forward", short_of_memory(model.base.unet.forward, 4))
    monkeypatch.setattr(model.base.vae, "decode", short_of_memory(model.base.vae.decode, 1))
    torch.testing.assert_close(sampler(model, *arguments), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.base.decode_latents(wanted), pictures, rtol=1e-4, atol=1e-4)
    assert sampler.chunk == 2 and model.base.at_once["vae"] == 1
