"""A run folder, read back from its files."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from cnx.errors import InputError

# What a run did that was saved before these keys were.
BEFORE = {
    "choices": {},
    "noise_offset": 0.0,
    "batch_size": None,
    "warmup_steps": 0,
    "decay": {"_target_": "hydra.utils.get_method", "path": "cnx.schedule.linear"},
    "memory": {"gradient_checkpointing": False, "half_locked": False, "offload": False, "device_gib": None},
    "compile": False,
}


@dataclass(frozen=True)
class HeldOut:
    """The held-out items that a run's probe draws: pictures "n h w 3" in uint8, and their prompts.

    control: 3 channels for each condition.
    """

    control: UInt8[np.ndarray, "n h w m"]
    target: UInt8[np.ndarray, "n h w 3"]
    reconstruction: UInt8[np.ndarray, "n h w 3"]
    prompts: list[str]


@dataclass(frozen=True)
class SavedRun:
    """What the files of a run folder say; a file that is not there (yet) is an empty answer, never an error.

    A folder that is no run, without config.yaml, reads as a run that has not begun.
    """

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        file = self.folder / "config.yaml"
        config: Any = OmegaConf.to_container(in_present_terms(read_yaml(file))) if file.is_file() else {}
        return config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Empty until the run is finished."""
        return self._json("summary.json")

    @cached_property
    def probe(self) -> dict[str, Any]:
        """The floor, the ceiling, the probes and the control gains so far."""
        return self._json("samples/probe.json")

    @cached_property
    def phases(self) -> list[dict[str, Any]]:
        """The phases that have begun: {phase: its number, step, when, changed: what it set}."""
        return list(self._json("phases.json"))

    @cached_property
    def prompts(self) -> dict[str, Any]:
        """Fidelity under several kinds of prompt; empty where that was not measured."""
        return self._json("prompts.json")

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, numbers only, empty cells left out."""
        file = self.folder / "metrics.csv"
        if not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [_numbers(row) for row in csv.DictReader(opened)]
        return [row for row in rows if "optimizer_step" in row]

    @cached_property
    def samples_seen(self) -> dict[int, int]:
        """Samples seen at each optimizer step that metrics.csv has a row of."""
        return {int(row["optimizer_step"]): int(row["samples_seen"]) for row in self.rows if "samples_seen" in row}

    @property
    def fidelity(self) -> list[tuple[int, float]]:
        """(optimizer step, calibrated control fidelity) of each probe that has one."""
        found = [(probe["step"], probe["calibrated"]) for probe in self.probe.get("probes", [])]
        return [(step, value) for step, value in found if value is not None and np.isfinite(value)]

    @property
    def fidelity_by_samples(self) -> list[tuple[int, float]]:
        """`fidelity` by samples seen, of the probes at steps that metrics.csv has a row of."""
        return [(self.samples_seen[step], value) for step, value in self.fidelity if step in self.samples_seen]

    @property
    def gain(self) -> list[tuple[int, float]]:
        """(optimizer step, control gain) of each measurement."""
        return [(record["step"], record["gain"]) for record in self.probe.get("gains", [])]

    def item_fidelity(self, step: int) -> Float[np.ndarray, " n"] | None:
        """Calibrated control fidelity of each held-out item at the probe at `step`.

        All are measured by the probe's one scale, so that their mean is its fidelity. None where single items were not
        saved, or where the scale is degenerate.
        """
        probe = next((probe for probe in self.probe.get("probes", []) if probe["step"] == step), {})
        if not probe.get("items") or self.probe.get("degenerate"):
            return None
        floor, ceiling = probe.get("floor"), self.probe["ceiling"]["raw"]
        if floor is None:  # of before each probe kept its own
            floor = self.probe["floor"]["raw"]
        if ceiling - floor < 0.05:  # no scale to stand on, as for the probe's own fidelity
            return None
        return (np.array(probe["items"]) - floor) / (ceiling - floor)

    @property
    def final_fidelity(self) -> float | None:
        """Calibrated control fidelity at the end; None without a probe."""
        return self.summary.get("control_fidelity", {}).get("calibrated")

    @property
    def last_loss(self) -> float | None:
        """The last loss that metrics.csv has."""
        return next((row["train/loss"] for row in reversed(self.rows) if "train/loss" in row), None)

    @property
    def where(self) -> str:
        """How far an unfinished run has come, in words."""
        if not self.config:
            return (
                "its config.yaml is empty" if (self.folder / "config.yaml").is_file() else "not begun: no config.yaml"
            )
        steps = self.rows[-1]["optimizer_step"] if self.rows else 0
        return f"not finished: no summary.json; last row of metrics.csv at step {int(steps):,}"

    @cached_property
    def heldout(self) -> HeldOut | None:
        """The held-out items, or None where no probe has saved any."""
        file = self.folder / "samples" / "heldout.npz"
        if not file.is_file():
            return None
        control, target, reconstruction, prompts = _arrays(file, "control", "target", "reconstruction", "prompts")
        return HeldOut(control, target, reconstruction, [str(prompt) for prompt in prompts])

    def pictured(self) -> list[int]:
        """The optimizer steps of probes whose samples are there, in order."""
        if self.heldout is None:
            return []
        return [probe["step"] for probe in self.probe.get("probes", []) if self._samples(probe["step"]).is_file()]

    def samples(self, step: int) -> UInt8[np.ndarray, "n h w 3"]:
        """The samples of the probe at `step`, one of `pictured()`."""
        (samples,) = _arrays(self._samples(step), "samples")
        return samples

    def _samples(self, step: int) -> Path:
        return self.folder / "samples" / f"step_{step:06d}.npz"

    def _json(self, name: str) -> Any:
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # what is no UTF-8 included
            raise InputError(f"{file}: no JSON ({error}); mend or delete it") from error


def in_present_terms(saved: Any) -> Any:
    """A run's saved configuration with the keys that have come since, as what was done without them."""
    if not isinstance(saved, DictConfig) or not saved:
        return saved
    cfg = OmegaConf.merge(BEFORE, saved)
    assert isinstance(cfg, DictConfig)
    data = cfg.get("data")
    if isinstance(data, DictConfig):
        if "cache_folder" not in data:  # older runs called the folder data.cache, and cached all
            data.cache_folder, data.cache = data.get("cache", "cache"), "all"
        if "micro_batch" not in cfg and "batch_size" in data:
            cfg.micro_batch = data.batch_size
    return cfg


def read_yaml(file: Path) -> Any:
    """What `OmegaConf.load` makes of a file. Raises InputError if it is no YAML."""
    try:
        return OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as YAML ({line}); mend it, or leave the run out") from error


def _arrays(file: Path, *names: str) -> list[np.ndarray]:
    """The arrays of those names in a file of numpy's. Raises InputError if it is damaged."""
    try:
        with np.load(file) as saved:
            return [saved[name] for name in names]
    except Exception as error:  # whatever a damaged archive raises
        why = " ".join(str(error).split())
        raise InputError(f"{file}: is damaged ({why}); delete it, and the run is shown without it") from error


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, cell in row.items():
        try:
            numbers[name] = float(cell)
        except (TypeError, ValueError):  # empty, or the half of a row that is being written
            continue
    return numbers
