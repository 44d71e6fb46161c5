"""benchmarks/real_size.py on small widths: from files of each format, `run.py` trains and draws."""

from pathlib import Path

import pytest

from benchmarks.real_size import FILES, SAMPLE, TRAIN, write
from small_runs import launch

SMALL = [
    "base.resolution=64",
    "base.architecture.unet.block_out_channels=[64,64,64,64]",
    "base.architecture.unet.attention_head_dim=[1,1,1,1]",
    "base.architecture.unet.cross_attention_dim=32",
    "base.architecture.vae.block_out_channels=[32,32,32,32]",
    "base.architecture.text_encoder.hidden_size=32",
    "base.architecture.text_encoder.intermediate_size=32",
    "base.architecture.text_encoder.num_hidden_layers=1",
    "base.architecture.text_encoder.num_attention_heads=2",
]


@pytest.mark.parametrize("form", FILES)
def test_files_of_each_format_train_and_draw(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("sd21_768", form, SMALL, tmp_path)
    base, control = FILES[form]
    launch("base=sd21_768", f"base.path={base}", "init=pretrained", f"init.path={control}", *TRAIN, *SMALL)
    trained = next(Path("runs/default").iterdir())
    assert (trained / "summary.json").is_file() and (trained / "controlnet" / "config.json").is_file()
    next(Path("data").glob("*/source/*.png")).rename("map.png")
    launch(f"run={trained}", *SAMPLE)
    assert next((trained / "drawn").rglob("grid.png")).is_file()
