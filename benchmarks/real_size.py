"""Load, train and sample bases of Stable Diffusion's own size, written with random weights in each format.

    python benchmarks/real_size.py [base=sd15,sd21,sd21_768] [format=diffusers,original,...] [any override of run.py]

A base and a ControlNet for it are written in half precision as each format has it (conf/format), to a temporary folder:
up to 6 GB at a time. Then `run.py` trains from these files for two steps of one picture, and `task=sample` draws in two
steps, each in a process of its own, whose time from start to end and peak of resident memory are printed. The pictures
mean nothing. Not for Windows.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import CLIPTextModel  # noqa: E402

import run  # noqa: E402, F401  (mounts experiments/ and the resolvers of conf/)
from cnx.base import Base, write_weights  # noqa: E402
from cnx.model import Full, SavedBranch, plain_settings  # noqa: E402

# What the files of a format are called: the base, the ControlNet.
FILES = {
    "diffusers": ("base", "control"),
    "original": ("base.ckpt", "control.pth"),
    "safetensors": ("base.safetensors", "control.safetensors"),
    "original_with_base": ("control_ini.ckpt", "control_ini.ckpt"),
}
TRAIN = [
    "data=birds",
    "data.limit=4",
    "data.heldout=0",
    "data.batch_size=1",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
    "~callback.probe",
    "logger=none",
]
SAMPLE = ["task=sample", "control=map.png", "sampler.steps=2", "num_samples=1"]


@dataclass
class Spent:
    """A process's time in seconds and its peak of resident memory in bytes."""

    seconds: float
    peak: int


def write(base_name: str, form_name: str, overrides: list[str], folder: Path) -> None:
    """A base and a ControlNet of random weights, by the architecture in conf/, in half precision."""
    chosen = [f"base={base_name}", "task=convert", "to=x", f"format={form_name}"]
    own = [override for override in overrides if override.startswith("base.")]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=chosen + own)
    torch.manual_seed(0)
    parts = {name: instantiate(part, _convert_="all") for name, part in cfg.base.architecture.items()}
    parts["text_encoder"] = CLIPTextModel(parts["text_encoder"])
    base = Base(**{name: part.half() if isinstance(part, torch.nn.Module) else part for name, part in parts.items()})
    model = Full(base, cfg.base.hint_channels)
    settings = plain_settings(model.branch.config)
    weights = {name: tensor.half() for name, tensor in model.branch.state_dict().items()}
    branch = SavedBranch("ControlNetModel", settings, weights, frozenset(settings))
    base_file, control_file = FILES[form_name]
    if form_name == "diffusers":
        base.save(folder / base_file)
    elif base_file != control_file:
        write_weights(base.original_weights(), folder / base_file, {})
    instantiate(cfg.format).write(branch, folder / control_file, base.original_weights)


def launch(folder: Path, *overrides: str) -> Spent:
    """Do `run.py` in `folder`, with its output shown only if it fails."""
    began = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, str(REPOSITORY / "run.py"), *overrides]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(
            f"benchmarks/real_size.py: run.py {' '.join(overrides)}\n{(folder / 'output.txt').read_text()[-2000:]}"
        )
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Spent(time.perf_counter() - began, peak)


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    """Call `function` in a process whose memory is given back when it ends."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def measure(base: str, form: str, overrides: list[str]) -> tuple[int, Spent, Spent]:
    """Bytes of the files, and what training and sampling took."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        in_fresh_process(write, base, form, overrides, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        base_file, control_file = FILES[form]
        given = [f"base={base}", f"base.path={base_file}", "init=pretrained", f"init.path={control_file}"]
        trained = launch(folder, *given, *TRAIN, *overrides)
        run_folder = next((folder / "runs" / "default").iterdir())
        maps = sorted((folder / "data").glob("*/source/*.png"))
        maps[0].rename(folder / "map.png")
        sampled = launch(folder, f"run={run_folder.relative_to(folder)}", *SAMPLE)
    return size, trained, sampled


def main(arguments: list[str]) -> None:
    chosen = {"base": "sd15,sd21,sd21_768", "format": ",".join(FILES)}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in chosen:
            chosen[key] = value
        else:
            overrides.append(argument)
    rows = ("files", "train, 2 steps", "peak", "sample, 2 steps", "peak")
    table = Table("base", "format", *rows, title="Real sizes, from the start of a process to its end")
    for base in chosen["base"].split(","):
        for form in chosen["format"].split(","):
            if form not in FILES:
                sys.exit(f"benchmarks/real_size.py: format={form}: must be of {', '.join(FILES)}")
            size, trained, sampled = measure(base, form, overrides)
            spent = [t for s in (trained, sampled) for t in (f"{s.seconds:.0f} s", f"{s.peak / 2**30:.1f} GiB")]
            table.add_row(base, form, f"{size / 2**30:.1f} GiB", *spent)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
