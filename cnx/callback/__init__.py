"""What watches a run: the convergence probe, the progress bar, the metrics table, Ctrl-C."""

from cnx.callback.interrupt import Interrupt
from cnx.callback.probe import Probe, ProbeRecord
from cnx.callback.progress import RunProgress
from cnx.callback.table import MetricsCSV

__all__ = ["Interrupt", "MetricsCSV", "Probe", "ProbeRecord", "RunProgress"]
