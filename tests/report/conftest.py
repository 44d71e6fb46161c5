"""Run folders as a training leaves them, small and with numbers of the test's choosing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

SaveRun = Callable[..., Path]


@pytest.fixture(scope="session")
def save_run(tmp_path_factory: pytest.TempPathFactory) -> SaveRun:
    """Write a run folder of this name, in a folder of its own.

    Floor 0 and ceiling 1, so that raw fidelity is calibrated fidelity; `fidelity[i]` is that of the probe at step
    100 i, and `items` the fidelities of single items at the last. Item i's control map is of brightness `controls[i]`.
    """

    def save(
        name: str,
        fidelity: Sequence[float] = (0.0, 0.6, 0.7, 0.8),
        finished: bool = True,
        choices: dict[str, str] | None = None,
        items: Sequence[float] | None = None,
        prompts: Sequence[str] = ("a bird", "two birds"),
        controls: Sequence[int] = (1, 2),
        converged: int | None = None,
        batch: int = 4,
        degenerate: bool = False,
        **config: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("runs") / name
        samples = folder / "samples"
        samples.mkdir(parents=True)
        chosen = {"base": "tiny", "model": "full", "init": "sd_copy", "task": "train"} | (choices or {})
        settings = {"name": "test", "choices": chosen, "seed": 0} | config
        OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
        probes = [
            {"step": 100 * i, "raw": v, "published": v, "calibrated": v, "items": []} for i, v in enumerate(fidelity)
        ]
        if items is not None:
            probes[-1]["items"] = list(items)
        content = {
            "floor": {"raw": 0.0, "published": 0.0},
            "ceiling": {"raw": 1.0, "published": 1.0},
            "degenerate": degenerate,
            "probes": probes,
            "gains": [{"step": p["step"], "gain": p["calibrated"] / 2} for p in probes],
        }
        (samples / "probe.json").write_text(json.dumps(content))
        rng = np.random.default_rng(0)
        n = len(prompts)
        pictures = rng.integers(0, 255, (3, n, 32, 32, 3), dtype=np.uint8)
        for picture, brightness in zip(pictures[0], controls, strict=True):
            picture[:] = brightness
        np.savez(
            samples / "heldout.npz",
            control=pictures[0],
            target=pictures[1],
            reconstruction=pictures[2],
            prompts=np.array(prompts),
        )
        rows = ["optimizer_step,micro_batch,samples_seen,train/loss"]
        for probe in probes:
            step = probe["step"]
            drawn = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
            np.savez(samples / f"step_{step:06d}.npz", samples=drawn)
            rows.append(f"{step},{step},{batch * step},0.1")
        (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
        if finished:
            last = probes[-1]["calibrated"]
            summary = {
                "experiment": "test",
                "seed": settings["seed"],
                "git_commit": "0" * 40,
                "train_items": 10,
                "data": "birds",
                "condition": "canny",
                "optimizer_steps": probes[-1]["step"],
                "samples_seen": batch * probes[-1]["step"],
                "wall_seconds": 61.4,
                "images_per_second": 12.34,
                "control_fidelity": {
                    **{"raw": last, "floor": 0.0, "ceiling": 1.0, "calibrated": last, "items": n},
                    **{"published": 0.123, "published_floor": 0.045, "published_ceiling": 0.67},
                    "measure": "edge F1; higher is better",
                },
                "convergence_step": converged,
                "convergence_after": converged - 100 if converged else None,
                "fidelity_25_step": converged,
                "fidelity_75_step": None,
            }
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return save
