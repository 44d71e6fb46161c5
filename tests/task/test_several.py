"""A real run under two conditions: trained, gone on with, loaded in diffusers, drawn with, measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from safetensors.torch import load_file

from cnx.data.module import to_tensor
from small_runs import REPOSITORY, SMALL, launch

pytestmark = pytest.mark.usefixtures("in_workplace")
BOTH = "condition=[canny,depth]"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "controlnet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        return workplace / launch(BOTH, "trainer.max_steps=2", *SMALL)


def test_it_reports_each_condition_and_their_mean(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["condition"] == "canny+depth"
    fidelity = summary["control_fidelity"]
    for name in ("raw", "floor", "ceiling"):
        assert fidelity[name] == pytest.approx((fidelity["canny"][name] + fidelity["depth"][name]) / 2)
    assert "F1" in fidelity["canny"]["measure"] and "RMSE" in fidelity["depth"]["measure"]
    launch("task=evaluate", f"run={trained}", "num_items=2")
    evaluated = json.loads((trained / "evaluation.json").read_text())["control_fidelity"]
    for name in ("canny", "depth"):
        assert evaluated[name]["raw"] == pytest.approx(fidelity[name]["raw"], abs=0.02)


def test_a_resumed_run_learns_what_an_uninterrupted_one_learns(trained: Path) -> None:
    shorter = launch(BOTH, "trainer.max_steps=1", *SMALL)
    launch(f"resume={shorter}", "trainer.max_steps=2")
    assert weights(trained).keys() == weights(shorter).keys()
    assert all(torch.equal(tensor, weights(shorter)[name]) for name, tensor in weights(trained).items())


def test_it_draws_what_plain_diffusers_draws_and_the_maps_order_counts(trained: Path) -> None:
    maps = ["data/birds-128/source/3.png", "data/birds-128/depth/source/3.png"]
    given = [f"run={trained}", "prompt='a red bird, flying'", "seed=5", "sampler.steps=2"]
    launch("task=sample", f"control=[{','.join(maps)}]", "out=both", *given)
    launch("task=sample", f"control=[{','.join(reversed(maps))}]", "out=swapped", *given)
    controlnet: ControlNetModel = ControlNetModel.from_pretrained(trained / "controlnet")
    assert controlnet.config["conditioning_channels"] == 6
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        REPOSITORY / "pretrained" / "tiny", controlnet=controlnet, torch_dtype=torch.float32, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    stacked = torch.cat([to_tensor(np.asarray(Image.open(file).convert("RGB"))) for file in maps])[None]
    drawn = pipeline(
        "a red bird, flying",
        image=stacked,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )[0][0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    ours, swapped = (np.asarray(Image.open(f"{out}/3_seed5.png")).astype(float) / 255 for out in ("both", "swapped"))
    assert np.abs(ours - drawn).max() < 1.5 / 255
    assert not np.array_equal(ours, swapped)
    with pytest.raises(SystemExit, match="one file or folder for each control map .* of which there are 2"):
        launch("task=sample", f"control={maps[0]}", *given)


def test_one_photo_is_annotated_for_each_map(trained: Path) -> None:
    photo = "data/birds-128/target/3.png"
    launch("task=sample", f"run={trained}", f"control={photo}", BOTH, "out=photo", "sampler.steps=2", "prompt=bird")
    edges = np.asarray(Image.open("photo/3_map1.png"))
    assert np.array_equal(edges, np.asarray(Image.open("data/birds-128/source/3.png").convert("RGB")))
    assert Path("photo/3_map2.png").is_file() and Path("photo/grid.png").is_file()


def test_data_with_another_number_of_maps_is_refused_at_once(trained: Path) -> None:
    with pytest.raises(SystemExit, match=r"each picture 1 control map, and condition=canny\+depth is of 2"):
        launch(BOTH, "data=folder", "data.root=data/birds-128", *SMALL)
