"""What watches a run: the convergence probe, phases, the progress bar, the metrics table, early ends, Ctrl-C."""

from cnx.callback.checkpoint import Checkpoint
from cnx.callback.early_verdict import EarlyVerdict, Flat, Hopeless
from cnx.callback.ema import EMA, averaged
from cnx.callback.interrupt import Interrupt, was_interrupted
from cnx.callback.length import steps_in_all
from cnx.callback.phases import Phases
from cnx.callback.probe import Probe, ProbeRecord
from cnx.callback.progress import RunProgress
from cnx.callback.prompt_ablation import PromptAblation
from cnx.callback.table import MetricsCSV
from cnx.callback.wandb import Wandb, wandb_logger

__all__ = [
    "EMA",
    "Checkpoint",
    "EarlyVerdict",
    "Flat",
    "Hopeless",
    "Interrupt",
    "MetricsCSV",
    "Phases",
    "Probe",
    "ProbeRecord",
    "PromptAblation",
    "RunProgress",
    "Wandb",
    "averaged",
    "steps_in_all",
    "wandb_logger",
    "was_interrupted",
]
