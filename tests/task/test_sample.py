"""task=sample on run folders whose branches are random: what is drawn does not matter here, what draws it does."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

import run
from cnx.condition import Canny
from cnx.data.caption import Captioner
from cnx.data.folder import load_image
from cnx.data.synthetic import Birds
from cnx.errors import InputError
from cnx.task.given import Subject, read_prompts
from cnx.task.run_folder import save_config
from cnx.task.train import build
from small_runs import REPOSITORY, begun

STEPS = "sampler.steps=2"


def sample(*overrides: str, steps: str | None = STEPS) -> None:
    """What `python run.py task=sample <overrides>` does."""
    run.execute(begun("task=sample", *overrides, *([steps] if steps else [])))


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def same(first: str | Path, second: str | Path) -> bool:
    """Equal but for rounding: a sum may differ in its last bit with the size of the batch."""
    return bool(np.abs(pixels(first) - pixels(second)).max() <= 1)


def lines(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a and b, with branches that have a say; photos/ and maps/; a data set folder pairs/."""
    place = tmp_path_factory.mktemp("workplace")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        cfg = begun()
        cfg.choices = {"base": "tiny", "init": "sd_copy"}
        _, model = build(cfg)
        for part, weight in model.branch.named_parameters():
            if "controlnet_" in part:  # zero convolutions would say nothing
                torch.nn.init.normal_(weight, std=0.5 if "cond_embedding" in part else 0.05)
        model.branch.save_pretrained(place / name / "controlnet", safe_serialization=True)
        save_config(cfg, place / name)
    for folder in ("photos", "maps", "pairs/source", "pairs/target"):
        (place / folder).mkdir(parents=True)
    items = []
    for number in range(3):
        pair = Birds().draw(number, 128)
        Image.fromarray(pair.target).save(place / "photos" / f"{number}.png")
        Image.fromarray(Canny()(pair.target)).save(place / "maps" / f"{number}.png")
        for side, picture in (("target", pair.target), ("source", Canny()(pair.target))):
            Image.fromarray(picture).save(place / "pairs" / side / f"{number}.png")
        items.append({"source": f"{number}.png", "target": f"{number}.png", "prompt": f"{number} red birds"})
    (place / "pairs" / "prompt.json").write_text("\n".join(json.dumps(item) for item in items))
    return place


@pytest.fixture(autouse=True)
def in_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_is_drawn_in_one_go_and_a_seed_gives_the_same_picture_in_any_company() -> None:
    sample("run=a", "control=maps", "prompt=a bird", "num_samples=2", "seed=4", "sampler.chunk=4", "out=many")
    drawn = [f"{name}_seed{seed}.png" for name in range(3) for seed in (4, 5)]
    assert [line["file"] for line in lines("many")] == drawn
    assert sorted(file.name for file in Path("many").iterdir()) == [*drawn, "grid.png", "samples.jsonl"]
    sample("run=a", "control=maps/1.png", "prompt=a bird", "seed=5", "out=one")
    assert same("one/1_seed5.png", "many/1_seed5.png")
    assert not same("many/1_seed4.png", "many/1_seed5.png")
    assert not same("many/0_seed5.png", "many/1_seed5.png")


def test_a_picture_is_drawn_again_on_the_base_that_it_was_drawn_on(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "pretrained" / "tiny", tmp_path / "other")
    weights = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    changed = load_file(weights)
    changed["decoder.conv_out.weight"] *= 0.5
    save_file(changed, weights)
    sample("run=a", "control=maps/0.png", "prompt=a bird", f"base.path={tmp_path / 'other'}", f"out={tmp_path / 'one'}")
    sample("run=a", "control=maps/0.png", "prompt=a bird", f"out={tmp_path / 'own'}")
    picture = tmp_path / "one" / "0_seed0.png"
    assert not same(picture, tmp_path / "own" / "0_seed0.png")
    sample(f"again={picture}", f"out={tmp_path / 'again'}", steps=None)
    assert same(picture, tmp_path / "again" / "0_seed0.png")
    assert lines(tmp_path / "again") == lines(tmp_path / "one")


def test_a_picture_is_drawn_again_from_its_line_until_its_weights_change(tmp_path: Path) -> None:
    sample(
        "run=[a,b]", "control=[photos/0.png,photos/1.png]", "strength=[1,0.5]", "condition=canny", "condition.low=50",
        "control_mode=guess", "control_mode.weights.decay=0.7", "sampler=unipc", "sampler.guidance=2", "seed=7",
        "added_prompt=flying", "prompt=a bird", "negative_prompt=a circle", "control_end=0.5", "width=96",
        "image=photos/2.png", "image_strength=1", f"out={tmp_path / 'first'}",
    )  # fmt: skip
    (line,) = lines(tmp_path / "first")
    assert line["prompt"] == "a bird, flying" and line["sampler"]["guidance"] == 2 and line["sampler"]["steps"] == 2
    picture = tmp_path / "first" / "0_seed7.png"
    assert pixels(picture).shape == (128, 96, 3)
    sample(f"again={picture}", f"out={tmp_path / 'again'}", steps=None)
    assert np.array_equal(pixels(picture), pixels(tmp_path / "again" / "0_seed7.png"))
    assert lines(tmp_path / "again") == [line]

    with pytest.raises(SystemExit, match="nothing beside it but out; leave out seed=3"):
        sample(f"again={picture}", "seed=3", steps=None)
    listing = tmp_path / "first" / "samples.jsonl"
    another = line | {"image_sha256": ["another"]}
    listing.write_text(f'{json.dumps(another)}\n{{"file": "cut')
    with pytest.raises(SystemExit, match=r"photos/2\.png: is another file than again="):
        sample(f"again={picture}", f"out={tmp_path / 'third'}", steps=None)
    line["controlnet_sha256"][1] = "another"
    listing.write_text(json.dumps(line))
    with pytest.raises(SystemExit, match="have changed"):
        sample(f"again={picture}", f"out={tmp_path / 'third'}", steps=None)
    assert not (tmp_path / "third").exists()


def test_an_annotator_makes_the_maps_of_photos_and_a_data_set_gives_both_and_its_captions() -> None:
    sample("run=a", "control=pairs", "limit=2", "prompt_mode=automatic", "out=given")
    sample("run=a", "control=pairs", "limit=2", "prompt_mode=automatic", "condition=canny", "out=annotated")
    assert [line["prompt"] for line in lines("given")] == ["0 red birds", "1 red birds"]
    for number in range(2):
        assert same(f"given/{number}_seed0.png", f"annotated/{number}_seed0.png")
        assert np.array_equal(pixels(f"annotated/{number}_map.png"), pixels(f"maps/{number}.png"))


def test_each_run_of_several_has_its_own_strength_and_one_at_zero_is_not_there() -> None:
    sample("run=[a,b]", "control=[maps/0.png,maps/1.png]", "strength=[1,0]", "prompt=a bird", "out=silent")
    sample("run=[a,b]", "control=[maps/0.png,maps/1.png]", "strength=[1,1]", "prompt=a bird", "out=both")
    sample("run=a", "control=maps/0.png", "prompt=a bird", "out=alone")
    assert same("silent/0_seed0.png", "alone/0_seed0.png") and not same("both/0_seed0.png", "alone/0_seed0.png")


def test_inpainting_keeps_what_the_mask_leaves_out() -> None:
    half = Image.new("L", (128, 128))
    half.paste(255, (64, 0, 128, 128))
    half.save("half.png")
    arguments = ["run=a", "control=maps/0.png", "prompt=a bird", "image=photos/0.png", "strength=0.1"]
    sample(*arguments, "mask=half.png", "out=inpainted")
    sample(*arguments, "image_strength=1", "out=whole")
    photo = pixels("photos/0.png")
    kept, drawn = slice(0, 48), slice(80, 128)  # away from the seam, across which the VAE's convolutions see
    error = {name: np.abs(pixels(f"{name}/0_seed0.png") - photo).mean(axis=(0, 2)) for name in ("inpainted", "whole")}
    assert error["inpainted"][kept].mean() < 0.5 * error["inpainted"][drawn].mean()
    assert error["inpainted"][kept].mean() < 0.5 * error["whole"][kept].mean()
    assert (lines("inpainted")[0]["image_strength"], lines("whole")[0]["image_strength"]) == (1, 1)


def settings(**changes: Any) -> DictConfig:
    keys = {"prompt_mode": None, "prompt": None, "added_prompt": "", "default_prompt": "fine", "image": None}
    return OmegaConf.create(
        {**keys, "captioner": {"_target_": "cnx.data.caption.Captioner", "path": "none"}, **changes}
    )


SUBJECTS = [Subject((Path("x.png"),), photo=None, caption="three birds"), Subject((Path("y.png"),), None, "a bird")]


@pytest.mark.parametrize(
    ("changes", "prompts"),
    [
        ({"prompt_mode": "none"}, ["", ""]),
        ({"prompt_mode": "default"}, ["fine", "fine"]),
        ({"prompt_mode": "automatic"}, ["three birds", "a bird"]),
        ({"prompt_mode": "user", "prompt": "a cat"}, ["a cat", "a cat"]),
        ({"prompt": "a cat"}, ["a cat", "a cat"]),
        ({"prompt": ""}, ["", ""]),
        ({}, ["fine", "fine"]),
        ({"prompt_mode": "automatic", "added_prompt": "flying"}, ["three birds, flying", "a bird, flying"]),
        ({"prompt_mode": "none", "added_prompt": "flying"}, ["flying", "flying"]),
    ],
)
def test_where_prompts_come_from(changes: dict[str, Any], prompts: list[str]) -> None:
    assert read_prompts(settings(**changes), SUBJECTS) == prompts


def test_a_photo_without_a_caption_is_captioned(blip: Path) -> None:
    captioner = Captioner(str(blip))
    said = captioner(load_image("photos/0.png"))
    assert said and said == captioner(load_image("photos/0.png"))
    assert set(said.split()) <= {"[DEC]", "[ENC]", *"abcdefghij"}
    subject = Subject((Path("maps/0.png"),), Path("photos/0.png"), None)
    changes = {"prompt_mode": "automatic", "captioner": {"_target_": "cnx.data.caption.Captioner", "path": str(blip)}}
    assert read_prompts(settings(**changes), [subject, *SUBJECTS]) == [said, "three birds", "a bird"]
    with pytest.raises(InputError, match="no photo of y.png to caption; give image="):
        read_prompts(settings(**changes), [Subject((Path("y.png"),), None, None)])


BAD_INPUT = {
    "map_that_is_not_there": (["control=nowhere.png"], "control=nowhere.png: no such file"),
    "folder_without_pictures": (["control=a"], "control=a: no pictures"),
    "map_that_is_no_picture": (["control=a/config.yaml"], "config.yaml: not an image"),
    "too_many_strengths": (["strength=[1,0.5]"], "strength=[1, 0.5]: must be one number"),
    "strength_that_is_no_number": (["strength=much"], "strength=much: must be one number"),
    "fewer_maps_than_runs": (["run=[a,b]"], "one file or folder for each control map"),
    "unequal_folders": (["run=[a,b]", "control=[maps,maps/0.png]"], "3 pictures in maps, 1 in maps/0.png"),
    "end_before_start": (["control_start=0.5", "control_end=0.2"], "control_start=0.5 control_end=0.2"),
    "unknown_prompt_mode": (["prompt_mode=blip"], "prompt_mode=blip: must be one of none, default"),
    "user_mode_without_prompt": (["prompt_mode=user"], "give the prompt"),
    "prompt_that_is_not_drawn": (["prompt_mode=none", "prompt=x"], "does not draw prompt=x"),
    "nothing_to_caption": (["prompt_mode=automatic"], "no photo of maps/0.png to caption"),
    "no_captioner": (["prompt_mode=automatic", "image=photos/0.png"], "load it once with a network"),
    "size": (["height=100"], "height=100: this base draws multiples of 32 px; use 96 or 128"),
    "mask_of_another_size": (["image=photos/0.png", "mask=small.png"], "mask=small.png: is 64x64"),
    "mask_without_white": (["image=photos/0.png", "mask=black.png"], "no white"),
    "mask_without_picture": (["mask=small.png"], "give image="),
    "image_strength": (["image=photos/0.png", "image_strength=1.5"], "image_strength=1.5"),
    "no_step_left": (["image=photos/0.png", "image_strength=0.1"], "less than one of 2 sampling steps"),
    "no_samples": (["num_samples=0"], "num_samples=0"),
    "half_a_sample": (["num_samples=1.5"], "num_samples=1.5: must be a whole number"),
    "half_a_seed": (["seed=1.5"], "seed=1.5: must be a whole number"),
    "no_maps_wanted": (["limit=0"], "limit=0: must be a whole number of at least 1"),
    "size_in_words": (["height=tall"], "height=tall: must be a whole number"),
    "endless_strength": (["strength=inf"], "strength=inf: must be one number"),
    "list_of_prompts": (["prompt=[a,b]"], "prompt=['a', 'b']: must be one text"),
    "control_in_no_step": (["control_start=0.3", "control_end=0.7"], "lies none of the 2 sampling steps"),
    "two_conditions_for_one_map": (["condition=[canny,depth]"], "names 2 kinds of map, and run=a takes 1 map;"),
    "second_map_unreadable": (["control=mixed"], "mixed/b.png: not an image"),
    "out_among_the_maps": (["control=mixed/a.png", "out=mixed"], "out=mixed: holds what is drawn from"),
    "foreign_config": (["run=foreign"], "foreign/config.yaml: is not the configuration of a run"),
    "no_chunk": (["sampler.chunk=0"], "sampler.chunk=0: must be a whole number of at least 1"),
    "too_many_steps": (["sampler.steps=1001"], "the base knows 1,000 timesteps"),
    "again_of_no_picture": (["again=maps/0.png"], "no maps/samples.jsonl"),
}


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_bad_input_gets_one_clear_line_and_leaves_nothing_behind(mistake: str) -> None:
    Image.new("L", (64, 64), 255).save("small.png")
    Image.new("L", (128, 128), 0).save("black.png")
    for folder in ("mixed", "foreign"):
        Path(folder).mkdir(exist_ok=True)
    Image.new("L", (128, 128), 0).save("mixed/a.png")
    Path("mixed/b.png").write_text("none")
    Path("foreign/config.yaml").write_text("a: 1")
    overrides, named = BAD_INPUT[mistake]
    given = {override.partition("=")[0] for override in overrides}
    beside = [o for o in ("run=a", "control=maps/0.png", "out=bad") if o.partition("=")[0] not in given]
    if mistake == "again_of_no_picture":
        beside = ["out=bad"]
    with pytest.raises(SystemExit) as stop:
        sample(*overrides, *beside, steps=None if mistake in ("again_of_no_picture", "too_many_steps") else STEPS)
    line = stop.value.code
    assert isinstance(line, str) and named in line and "\n" not in line
    assert not Path("bad").exists()


def test_a_folder_may_hold_both_the_maps_and_the_drawings_in_folders_of_their_own() -> None:
    Path("held/maps").mkdir(parents=True)
    shutil.copy("maps/0.png", "held/maps")
    sample("run=a", "control=held/maps", "prompt=a bird", "out=held")
    assert Path("held/0_seed0.png").is_file()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "mode",
            ["control_mode=balanced", "control_mode=guess", "control_mode=resolution", "control_mode=conditional"],
        ),
        ("negative", ["strength=0", "strength=0 negative_prompt='a circle in the night'"]),
    ],
)
def test_a_negative_prompt_and_where_control_goes_change_the_picture(name: str, options: list[str]) -> None:
    for number, option in enumerate(options):
        given = option.split(" ", 1)
        sample("run=a", "control=maps/0.png", "prompt=a bird", *given, f"out={name}_{number}")
    drawn = [f"{name}_{number}/0_seed0.png" for number in range(len(options))]
    assert not any(same(one, other) for at, one in enumerate(drawn) for other in drawn[:at])


def test_no_negative_prompt_is_an_empty_one() -> None:
    sample("run=a", "control=maps/0.png", "prompt=a bird", "negative_prompt=null", "logger=none", "out=none")
    sample("run=a", "control=maps/0.png", "prompt=a bird", "out=empty")
    assert same("none/0_seed0.png", "empty/0_seed0.png")


def test_pictures_are_not_drawn_over() -> None:
    Path("full").mkdir()
    Path("full/samples.jsonl").touch()
    with pytest.raises(SystemExit, match="out=full: is there already"):
        sample("run=a", "control=maps/0.png", "out=full")
