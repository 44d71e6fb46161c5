"""wandb's records, read back from the file that `wandb sync` uploads."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from lightning.pytorch import Trainer
from PIL import Image
from wandb.proto import wandb_internal_pb2 as pb

import cnx.callback.probe
import cnx.callback.wandb
from cnx.callback import Probe, Wandb, wandb_logger
from cnx.callback.wandb import flatten
from cnx.condition import Agreement
from cnx.sampler import DDIM

Fit = Callable[..., tuple[Any, Trainer]]
BLOCK = 32768


def records(file: Path) -> Iterator[pb.Record]:
    """A run's record: LevelDB's log format (blocks of 32 KiB; checksum, length, type) after a header of 7 bytes."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # the rest of a block is too short for a header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last; not first or middle
            yield pb.Record.FromString(whole)
            whole = b""


def history(file: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(file):
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, last = item.nested_key or [item.key]
                place = row
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = json.loads(item.value_json)
            rows.append(row)
    return rows


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(cnx.callback.wandb, "CHOSEN_DATA_DIR", None)


def begin(folder: Path, **settings: Any) -> Wandb:
    given = {"name": "run", "project": "cnx", "group": None, "config": {}, **settings}
    return wandb_logger(folder=folder, **given)


def finish(logger: Wandb) -> None:
    logger.experiment.finish()
    wandb.teardown()  # waits until wandb's own process has written everything


def files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


class Likeness:
    def judge(self, drawn: np.ndarray, wanted: np.ndarray) -> Agreement:
        likeness = float(1 - np.abs(drawn.astype(float) - wanted).mean() / 255)
        return Agreement(likeness, likeness)


def test_an_offline_run_is_recorded_without_loss(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fidelities = iter([0.0, 0.2, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(cnx.callback.probe, "calibrate", lambda *_: next(fidelities))
    folder = tmp_path / "run"
    logger = begin(folder)
    run_folder = Path(logger.experiment.dir).parent
    probe = Probe(Likeness(), DDIM(steps=1), items=3, every=2, gain_every=1, adaptive=False, budget=None)
    fit(probe, max_steps=10, accumulate_grad_batches=2, logger=logger)
    finish(logger)
    (file,) = files(folder)

    rows = {row["optimizer_step"]: row for row in history(file)}
    assert list(rows) == list(range(11)), "one row for each step at which something was measured"
    for step, row in rows.items():
        assert (row["_step"], row["micro_batch"], row["samples_seen"]) == (step, 2 * step, 4 * step)
    assert [row["control/gain"] for row in rows.values()] == [record.gain for record in probe.gains]
    probed = {step: row for step, row in rows.items() if "control/fidelity" in row}
    assert [(step, row["control/fidelity"], row["control/fidelity_raw"]) for step, row in probed.items()] == [
        (record.step, record.calibrated, record.raw) for record in probe.history
    ]
    for record, row in zip(probe.history, probed.values(), strict=True):
        grid = run_folder / "files" / row["samples/grid"]["path"]
        assert Image.open(grid).size == Image.open(folder / "samples" / f"step_{record.step:06d}.png").size
        assert f"probe at step {record.step}:" in row["samples/grid"]["caption"]
        table = json.loads((run_folder / "files" / row["samples/table"]["path"]).read_text())
        assert table["columns"] == ["step", "item", "prompt", "map", "sample", "fidelity"]
        assert [line[-1] for line in table["data"]] == list(record.items)
        assert [line[:3] for line in table["data"]] == [[record.step, i, f"picture {i}"] for i in range(3)]

    # wandb uploads the pictures of a table as an artifact, from wherever it has put them.
    tables = [record.artifact for record in records(file) if record.HasField("artifact")]
    assert len(tables) == len(probe.history)
    pictures = [[c for c in table.manifest.contents if c.path.endswith(".png")] for table in tables]
    assert [len(of_one) for of_one in pictures[1:]] == [6] * (len(tables) - 1), "three maps and three samples"
    for picture in [picture for of_one in pictures for picture in of_one]:
        assert Path(picture.local_path).is_relative_to(folder) and Path(picture.local_path).is_file()

    alerts = [record.alert for record in records(file) if record.HasField("alert")]
    assert [alert.title for alert in alerts] == ["Converged at step 4"]
    assert "probe at step 8" in alerts[0].text, "when two more probes had confirmed it"
    summary = {item.key: item.value_json for record in records(file) for item in record.summary.update}
    assert summary["convergence_step"] == "4"


def test_every_section_is_drawn_over_optimizer_steps_and_the_clocks_have_no_panels(tmp_path: Path) -> None:
    logger = begin(tmp_path)
    logger.log_metrics({"train/loss": 0.5, "optimizer_step": 20, "micro_batch": 20, "samples_seen": 160}, step=20)
    finish(logger)
    metrics = [record.metric for record in records(files(tmp_path)[0]) if record.HasField("metric")]
    axes = {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name}
    assert axes == {f"{section}/*": "optimizer_step" for section in ("control", "train", "samples")}
    assert {m.name for m in metrics if m.options.hidden} >= {"optimizer_step", "micro_batch", "samples_seen"}


def test_a_run_that_goes_on_is_the_same_run_of_the_same_group(tmp_path: Path) -> None:
    first = begin(tmp_path, group="ablation")
    first.log_metrics({"train/loss": 0.5, "optimizer_step": 20}, step=20)
    finish(first)
    second = begin(tmp_path)
    assert (second.experiment.id, second.experiment.group) == (first.experiment.id, "ablation")
    second.log_metrics({"train/loss": 0.25, "optimizer_step": 40}, step=40)
    finish(second)
    assert [[row["_step"] for row in history(file)] for file in files(tmp_path)] == [[20], [40]]
    another = begin(tmp_path / "another")  # and left open, as a run is that fails
    assert another.experiment.id != first.experiment.id
    assert begin(tmp_path / "one more").experiment.id != another.experiment.id


class Online:
    """Stands for a run that is logged in, which no test can be: it keeps the artifacts that it is handed."""

    offline, url, id = False, "somewhere", "abc"

    def __init__(self, refuses: bool = False) -> None:
        self.used: list[wandb.Artifact] = []
        self.logged: list[wandb.Artifact] = []
        self.refuses = refuses

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        if self.refuses:
            raise wandb.errors.CommError("no room\nleft")
        self.used.append(artifact)

    def log_artifact(self, artifact: wandb.Artifact) -> None:
        self.logged.append(artifact)


@pytest.mark.parametrize("roots", [["data/birds"], ["owner/name"], ["shards/{000000..000002}.tar"], ["a", "hf://b/c"]])
def test_the_data_set_is_the_input_of_an_online_run_by_its_content_wherever_it_lies(roots: list[str]) -> None:
    online = Online()
    Wandb(experiment=online).use_dataset("birds", "0123456789abcdef", roots, resolution=128)  # pyright: ignore
    (data,) = online.used
    assert (data.type, data.name.split(":")[0]) == ("dataset", "birds-0123456789ab")
    assert data.metadata == {"content": "0123456789abcdef", "roots": roots, "resolution": 128}
    assert list(data.manifest.entries) == ["dataset.json"]


def test_the_model_of_an_online_run_is_its_output_with_the_base_that_it_trained(tmp_path: Path) -> None:
    for file in ("controlnet/config.json", "base/unet/config.json", "checkpoints/last.ckpt"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("{}")
    online = Online()
    Wandb(experiment=online).log_model(tmp_path, {"seed": 0})  # pyright: ignore[reportArgumentType]
    (model,) = online.logged
    assert (model.type, model.metadata) == ("model", {"seed": 0})
    assert sorted(model.manifest.entries) == ["base/unet/config.json", "controlnet/config.json"]


def test_an_artifact_that_is_refused_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    Wandb(experiment=Online(refuses=True)).use_dataset("birds", "0" * 64, ["data/birds"])  # pyright: ignore
    assert capsys.readouterr().out == "wandb: the data set is no artifact of this run (no room left)\n"


def test_the_configuration_is_flat_with_the_option_of_each_group() -> None:
    config = {
        "choices": {"init": "gaussian_control", "data": "birds", "stop": None},
        "init": {"_target_": "cnx.init.GaussianControl", "std": 0.01, "random": ["unet", "vae"]},
        "callback": {"probe": {"_target_": "x", "every": 250}},
        "seed": 0,
        "resume": None,
    }
    assert flatten(config) == {
        "init": "gaussian_control",
        "data": "birds",
        "init/std": 0.01,
        "init/random": ["unet", "vae"],
        "callback/probe/every": 250,
        "seed": 0,
        "resume": None,
    }
