"""Lay out the runs of a wandb project."""

import importlib.util
import os
from typing import TYPE_CHECKING

import wandb
from omegaconf import DictConfig

from cnx.callback.wandb import logged_in
from cnx.errors import InputError
from cnx.task.train import say

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

AXIS, SAMPLES = "optimizer_step", "samples_seen"


def run(cfg: DictConfig) -> None:
    """Save a workspace and a report in the wandb project `cfg.project`, and print where they are.

    Raises InputError without wandb-workspaces, a wandb login or the network.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError('task=dashboard: needs wandb-workspaces; pip install -e ".[dashboard]"')
    needs = "task=dashboard: needs wandb online; log in with `wandb login`, upload offline runs with `wandb sync`"
    if os.environ.get("WANDB_MODE", "online") != "online" or not logged_in():
        raise InputError(needs)
    try:
        entity = cfg.entity or wandb.Api().default_entity
        if entity is None:
            raise InputError("task=dashboard: this wandb login has no team of its own; give entity=<user or team>")
        pages = workspace(entity, cfg.project).save(), report(entity, cfg.project, cfg.group).save()
    except InputError:
        raise
    except Exception as error:  # whatever wandb raises on the way to its server, and there is much
        raise InputError(
            f"{needs} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    for page in pages:
        say(page.url)


def workspace(entity: str, project: str) -> "Workspace":
    """A project's page: does the model obey, its pictures, its training; the columns that say what a run is."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def line(title: str, metric: str) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=AXIS, y=[metric], title_x="optimizer steps")

    return ws.Workspace(
        entity=entity,
        project=project,
        name="cnx",
        sections=[
            ws.Section(
                name="control",
                panels=[
                    line("control fidelity (0: the map is ignored, 1: this VAE's best)", "control/fidelity"),
                    wr.LinePlot(title="control fidelity", x=SAMPLES, y=["control/fidelity"], title_x="samples seen"),
                    line("control gain", "control/gain"),
                ],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=3, rows=1),
            ),
            ws.Section(
                name="samples",
                panels=[wr.MediaBrowser(title="samples", media_keys=["samples/grid"], num_columns=1)],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
            ),
            ws.Section(
                name="train",
                panels=[
                    line("loss", "train/loss"),
                    line("learning rate", "train/lr"),
                    line("images/s", "train/images_per_second"),
                ],
                layout_settings=ws.SectionLayoutSettings(columns=3, rows=1),
            ),
        ],
        settings=ws.WorkspaceSettings(x_axis=AXIS, max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "run:displayName",
                *(f"config:{key}.value" for key in ("init", "model", "data", "seed")),
                "summary:control/fidelity",
                "summary:convergence_step",
                "summary:optimizer_steps",
            ]
        ),
    )


def report(entity: str, project: str, group: str | None) -> "Report":
    """A comparison of the runs of `group`, or of all: the curves, when each converged, the same item in all of them."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    runs = wr.Runset(
        entity=entity,
        project=project,
        name=group or "all runs",
        filters=[expr.Metric("Group") == group] if group else [],
    )

    def at(x: int, y: int, w: int = 12, h: int = 8) -> wr.Layout:
        return wr.Layout(x=x, y=y, w=w, h=h)

    def fidelity(x: str, name: str, layout: wr.Layout) -> wr.LinePlot:
        return wr.LinePlot(
            title=f"Control fidelity against {name}",
            x=x,
            y=["control/fidelity"],
            title_x=name,
            max_runs_to_show=50,
            layout=layout,
        )

    curves = [
        fidelity(AXIS, "optimizer steps", at(0, 0)),
        fidelity(SAMPLES, "samples seen", at(12, 0)),
        wr.LinePlot(title="Control gain", x=AXIS, y=["control/gain"], title_x="optimizer steps", layout=at(0, 8)),
        wr.BarPlot(title="Convergence step", metrics=["convergence_step"], layout=at(12, 8)),
    ]
    pictures = wr.MediaBrowser(
        media_keys=["samples/grid"], grid_x_axis="step", grid_y_axis="run", layout=at(0, 0, w=24, h=14)
    )
    differences = wr.RunComparer(diff_only="split", layout=at(0, 0, w=24, h=14))
    return wr.Report(
        entity=entity,
        project=project,
        title=f"cnx: {group or project}",
        width="fluid",
        blocks=[
            wr.H2("When control began"),
            wr.P(
                "Control fidelity is calibrated: 0, the samples ignore their control map; 1, they obey it as well as "
                "the VAE can draw. A run without a convergence step has not converged."
            ),
            wr.PanelGrid(runsets=[runs], panels=curves),
            wr.H2("The same held-out items"),
            wr.PanelGrid(runsets=[runs], panels=[pictures]),
            wr.H2("What differs"),
            wr.PanelGrid(runsets=[runs], panels=[differences]),
        ],
    )
