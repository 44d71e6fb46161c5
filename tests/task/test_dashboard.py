from typing import Any

import pytest
from omegaconf import OmegaConf

from cnx.errors import InputError
from cnx.task import dashboard

pytest.importorskip("wandb_workspaces")


def strings(node: Any) -> set[str]:
    """Every text in a page, however deep."""
    if isinstance(node, str):
        return {node}
    if isinstance(node, dict):
        node = node.values()
    elif hasattr(node, "__dict__"):
        node = vars(node).values()
    elif not isinstance(node, list | tuple):
        return set()
    return {text for value in node for text in strings(value)}


LOGGED = {"control/fidelity", "control/gain", "train/loss", "train/lr", "train/images_per_second", "samples/grid"}


def test_the_workspace_shows_what_runs_log_over_the_clocks_that_they_log() -> None:
    sent = dashboard.workspace("someone", "cnx")._to_model().model_dump(by_alias=True)
    assert strings(sent) >= {*LOGGED, "optimizer_step", "samples_seen", "someone"}
    assert not {text for text in strings(sent) if text.startswith(("control/", "train/", "samples/"))} - LOGGED


def test_the_report_compares_the_runs_of_a_group() -> None:
    page = dashboard.report("someone", "cnx", "multirun/2026-01-02")  # what is sent needs the server's project id
    assert strings(page) >= {"control/fidelity", "control/gain", "samples/grid", "optimizer_step", "samples_seen"}
    (grid, *_) = [block for block in page.blocks if hasattr(block, "runsets")]
    (chosen,) = strings(grid.runsets[0].filters)
    assert "Group" in chosen and "multirun/2026-01-02" in chosen
    everything = dashboard.report("someone", "cnx", None)
    assert (page.title, everything.title) == ("cnx: multirun/2026-01-02", "cnx: cnx")


def test_offline_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(InputError, match="wandb login") as error:
        dashboard.run(OmegaConf.create({"project": "cnx", "entity": None, "group": None}))
    assert "\n" not in str(error.value)
