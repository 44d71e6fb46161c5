"""What watches a run: the convergence probe, phases, the progress bar, the metrics table, Ctrl-C."""

from cnx.callback.checkpoint import Checkpoint
from cnx.callback.interrupt import Interrupt
from cnx.callback.phases import Phases
from cnx.callback.probe import Probe, ProbeRecord
from cnx.callback.progress import RunProgress
from cnx.callback.table import MetricsCSV
from cnx.callback.wandb import wandb_logger

__all__ = ["Checkpoint", "Interrupt", "MetricsCSV", "Phases", "Probe", "ProbeRecord", "RunProgress", "wandb_logger"]
