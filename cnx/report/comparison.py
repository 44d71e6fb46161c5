"""What runs say beside each other: arms, means over seeds, paired differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult

from cnx.errors import InputError
from cnx.report.curves import Curve, Panel
from cnx.report.interval import mean_interval
from cnx.report.prompts import HEADS, prompt_wall, read_prompt_ablation
from cnx.report.saved import SavedRun
from cnx.report.table import Table
from cnx.report.varied import ABSENT, brought, find_varied, short_names
from cnx.report.wall import shared_items, spread

NO_VALUE = "–"
MOST_PROBES = 8  # columns of two decimals that fit into a terminal beside an arm's name


@dataclass(frozen=True)
class Entry:
    """One of the runs compared.

    Attributes:
        varied: what differs between the runs, {column of `find_varied`: this run's value}; empty if it never began.
        arm: what it has in common with the runs that differ from it in the seed only; by the experiment's name where
            that says it all.
        label: arm and seed.
        missing: why its results are not there; None for a finished run.
    """

    run: SavedRun
    varied: Mapping[str, str]
    arm: str
    label: str
    missing: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Finished runs compared; printing it with rich prints its tables and notes.

    Attributes:
        arms: {arm: its finished runs}, in the order of each arm's first run.
        missing: the runs without results.
        tables: one row per run; per arm, if one has several runs, at the end and on the way; per arm against the first;
            per missing run.
        notes: what a reader has to know to read the tables.
    """

    title: str
    arms: Mapping[str, Sequence[Entry]]
    missing: Sequence[Entry]
    tables: Sequence[Table]
    notes: Sequence[str]

    @property
    def entries(self) -> list[Entry]:
        """The finished runs, arm by arm."""
        return [entry for entries in self.arms.values() for entry in entries]

    def panels(self) -> list[Panel]:
        """Calibrated control fidelity over optimizer steps and over samples seen, without runs that have no probe."""
        by_steps, by_samples = [], []
        for entry in self.entries:
            run, step = entry.run, entry.run.summary.get("convergence_step")
            seen = run.fidelity_by_samples
            if run.fidelity:
                by_steps.append(Curve(entry.arm, entry.label, run.fidelity, step, [p["step"] for p in run.phases]))
            if seen:
                sample = None if step is None else run.samples_seen.get(step)
                phases = [run.samples_seen[p["step"]] for p in run.phases if p["step"] in run.samples_seen]
                by_samples.append(Curve(entry.arm, entry.label, seen, sample, phases))
        fidelity = "calibrated control fidelity"
        clocks = {"optimizer steps": by_steps, "samples seen": by_samples}
        return [Panel(curves, clock, fidelity, level=0.5) for clock, curves in clocks.items() if curves]

    def prompt_wall(self) -> Image.Image | None:
        """`cnx.report.prompts.prompt_wall` of the first run of each arm that has one."""
        measured = ([entry for entry in arm if read_prompt_ablation(entry.run)] for arm in self.arms.values())
        firsts = [arm[0] for arm in measured if arm]
        return prompt_wall([entry.run for entry in firsts], [entry.arm for entry in firsts])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.tables
        yield from self.notes


def read_comparison(folders: Sequence[Path], missing: Mapping[str, str], title: str) -> Comparison:
    """Arguments, grouping and errors are those of `cnx.report.compare`; writes nothing."""
    entries = _entries([SavedRun(folder) for folder in folders], dict(missing))
    arms: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.missing is None:
            arms.setdefault(entry.arm, []).append(entry)
    absent = [entry for entry in entries if entry.missing is not None]
    if not arms:
        why = "; ".join(f"{entry.run.folder}: {entry.missing}" for entry in absent)
        raise InputError(f"no finished run to compare ({why or 'no run folders were given'})")
    made = (_arm_table(arms), _course_table(arms), _prompt_table(arms), _paired_table(arms), _missing_table(absent))
    tables = [_run_table(arms), *(table for tables in made for table in tables)]
    return Comparison(title, arms, absent, tables, list(_notes(arms)))


def convergence_words(summary: Mapping[str, Any]) -> str:
    """The convergence step with its bracket; or where it may lie, or how long the run went without."""
    step, before = summary.get("convergence_step"), summary.get("convergence_after")
    if step is not None:
        return f"{step:,}" + (f" (after {before:,})" if before is not None else "")
    ran, since = summary.get("optimizer_steps"), summary.get("convergence_unconfirmed")
    if since is not None:
        return f"{since:,}, unconfirmed"
    return NO_VALUE if "control_fidelity" not in summary or not ran else f"not by {ran:,}"


def fidelity_words(run: SavedRun) -> str:
    """The last calibrated fidelity, with * where the base leaves nothing to measure."""
    return number(run.final_fidelity, "z.2f") + ("*" if run.probe.get("degenerate") else "")


def number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else format(value, form)


def _entries(runs: Sequence[SavedRun], missing: dict[str, str]) -> list[Entry]:
    begun = [run for run in runs if run.config]
    columns = find_varied([run.config for run in begun], _versions(begun))
    short = short_names(columns)
    groups = {group for run in begun for group in run.config.get("choices") or {}}
    entries = []
    for run in runs:
        why = missing.pop(run.name, run.where)  # of a finished run it is not asked
        if not run.config:
            entries.append(Entry(run, {}, run.name, run.name, why))
            continue
        varied = {column: values[begun.index(run)] for column, values in columns.items()}
        own = str(run.config.get("name") or run.name)
        named = [
            f"{short[column]} {value}" if column not in groups else value if value != "null" else _none_of(column, own)
            for column, value in varied.items()
            if column != "seed" and value != ABSENT and not brought(columns, column)
        ]
        arm = ", ".join(named) or own
        label = f"{arm}, seed {varied['seed']}" if "seed" in varied else arm
        entries.append(Entry(run, varied, arm, label, None if run.summary else why))
    planned = [Entry(SavedRun(Path(name)), {}, name, name, why) for name, why in missing.items()]
    return entries + planned


def _versions(runs: Sequence[SavedRun]) -> list[str | None]:
    """None of a run that is not finished, or was made outside git."""
    return [run.summary.get("git_commit") for run in runs]


def _none_of(group: str, own: str) -> str:
    """What to call a run with no option of a group: without an experiment it goes by its own name."""
    return own if group == "experiment" else f"no {group}"


def _run_table(arms: Mapping[str, Sequence[Entry]]) -> Table:
    entries = [entry for arm in arms.values() for entry in arm]
    rows = [
        [
            *entry.varied.values(),
            fidelity_words(entry.run),
            convergence_words(entry.run.summary),
            number(entry.run.summary.get("wall_seconds"), ",.0f"),
            number(entry.run.summary.get("images_per_second"), ".1f"),
            entry.run.name,
        ]
        for entry in entries
    ]
    short = list(short_names(entries[0].varied).values())
    heads = [*short, "fidelity", "convergence step", "seconds", "images/s", "run"]
    return Table("Runs", heads, rows, words={*short, "run"} - {"seed"}, spare="run")


def _arm_table(arms: Mapping[str, Sequence[Entry]]) -> Iterator[Table]:
    if all(len(entries) == 1 for entries in arms.values()):
        return
    rows = []
    for arm, entries in arms.items():
        summaries = [entry.run.summary for entry in entries]
        steps = [summary.get("convergence_step") for summary in summaries]
        rows.append(
            [
                arm,
                str(len(entries)),
                _mean([entry.run.final_fidelity for entry in entries], "z.2f"),
                f"{sum(step is not None for step in steps)} of {len(steps)}",
                ", ".join(number(step, ",") for step in steps),
                number(_average([summary.get("wall_seconds") for summary in summaries]), ",.0f"),
                number(_average([summary.get("images_per_second") for summary in summaries]), ".1f"),
            ]
        )
    heads = ["arm", "runs", "fidelity", "converged", "at steps", "seconds", "images/s"]
    yield Table("Arms: means [95% interval over seeds]", heads, rows, words={"arm"}, spare="images/s")


def _course_table(arms: Mapping[str, Sequence[Entry]]) -> Iterator[Table]:
    """Fidelity at the probes that all runs have: at the same optimizer steps or, if they share more of these, samples.

    Runs of different batches share samples, where runs of one batch share both.
    """
    probed = {arm: [entry.run for entry in entries if entry.run.fidelity] for arm, entries in arms.items()}
    runs = [run for own in probed.values() for run in own]
    by_steps = _shared({run.folder: run.fidelity for run in runs})
    # Counts of samples part by less than a step where an epoch's last batch is smaller: 7,675 and 7,680.
    a_step = max((seen / step for run in runs for step, seen in run.samples_seen.items() if step), default=0)
    by_samples = _shared({run.folder: run.fidelity_by_samples for run in runs}, slack=a_step)
    title, course = "Fidelity at optimizer steps", by_steps
    if len(by_samples) > len(by_steps):
        title, course = "Fidelity after samples seen", by_samples
    if len(course) < 3:  # a beginning and an end at most
        return
    if any(len(own) > 1 for own in probed.values()):
        title += ": means over seeds"
    columns = spread(list(course), MOST_PROBES)
    means = {arm: [_average([course[at][run.folder] for run in own]) for at in columns] for arm, own in probed.items()}
    rows = [[arm, *(number(mean, "z.2f") for mean in own)] for arm, own in means.items()]
    yield Table(title, ["arm", *(f"{at:,}" for at in columns)], rows, words={"arm"})


def _shared(curves: Mapping[Path, Sequence[tuple[int, float]]], slack: float = 0) -> dict[int, dict[Path, float]]:
    """{where, on the first curve, all curves have a point within `slack`: each curve's value there}."""
    shared = {}
    for at, _ in next(iter(curves.values()), ()):
        nearest = {run: min(curve, key=lambda point: abs(point[0] - at), default=None) for run, curve in curves.items()}
        there = {run: point[1] for run, point in nearest.items() if point and abs(point[0] - at) <= slack}
        if len(there) == len(curves):
            shared[at] = there
    return shared


def _prompt_table(arms: Mapping[str, Sequence[Entry]]) -> Iterator[Table]:
    found = {arm: [read_prompt_ablation(entry.run) for entry in entries] for arm, entries in arms.items()}
    fidelity = {arm: [one.fidelity for one in measured if one] for arm, measured in found.items()}
    modes = [mode for mode in HEADS if any(mode in one for measured in fidelity.values() for one in measured)]
    if modes:
        rows = [
            [arm, str(len(measured)), *(_mean([one.get(mode) for one in measured], "z.2f") for mode in modes)]
            for arm, measured in fidelity.items()
        ]
        heads = ["arm", "runs", *(HEADS[mode] for mode in modes)]
        yield Table("Fidelity under each kind of prompt: mean [95% interval over seeds]", heads, rows, words={"arm"})


def _paired_table(arms: Mapping[str, Sequence[Entry]]) -> Iterator[Table]:
    (first, reference), *others = arms.items()
    if not others or len(_conditions(arms)) > 1:
        return
    rows = []
    for arm, entries in others:
        pairs = _pairs(reference, entries)
        over_seeds = [b - a for a, b in (map(_final, pair) for pair in pairs)]
        over_items = _item_differences(pairs)
        cells = [_mean(over_seeds, "+z.2f"), str(len(over_seeds)), _mean(over_items, "+z.2f"), str(len(over_items))]
        rows.append([arm, *cells])
    heads = ["arm", "over seeds", "seeds", "over held-out items", "items"]
    if all(row[-1] == "0" for row in rows):  # the runs have not saved single items
        heads, rows = heads[:-2], [row[:-2] for row in rows]
    yield Table(f"Fidelity minus that of {first}, by pairs: mean [95% interval]", heads, rows, words={"arm"})


def _conditions(arms: Mapping[str, Sequence[Entry]]) -> list[str]:
    """The conditions that fidelity is measured by."""
    return sorted(
        {str((entry.run.config.get("choices") or {}).get("condition")) for arm in arms.values() for entry in arm}
    )


def _missing_table(absent: Sequence[Entry]) -> Iterator[Table]:
    if absent:
        rows = [
            [
                entry.run.name if entry.run.config else entry.label,
                entry.label if entry.run.config else NO_VALUE,
                entry.missing or "",
            ]
            for entry in absent
        ]
        heads = ["run", "arm", "why"]
        yield Table("Missing", heads, rows, words=set(heads))


def _pairs(reference: Sequence[Entry], entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """The runs with the same seed and a fidelity; of several with one seed the last counts."""
    partners = {entry.run.config.get("seed"): entry for entry in reference if _final(entry) is not None}
    own = {entry.run.config.get("seed"): entry for entry in entries if _final(entry) is not None}
    return [(partners[seed], entry) for seed, entry in own.items() if seed in partners]


def _final(entry: Entry) -> Any:
    return entry.run.final_fidelity


def _item_differences(pairs: Sequence[tuple[Entry, Entry]]) -> list[float]:
    """The difference in the last fidelity of each held-out item that all runs drew, averaged over the pairs."""
    runs = [entry.run for pair in pairs for entry in pair]
    last = [run.item_fidelity(run.fidelity[-1][0]) for run in runs if run.fidelity and run.heldout]
    if not runs or len(last) < len(runs) or any(items is None for items in last):
        return []
    items = [values[places] for values, places in zip(last, shared_items(runs), strict=True) if values is not None]
    return list(np.mean([b - a for a, b in zip(items[::2], items[1::2], strict=True)], axis=0))


def _notes(arms: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    entries = [entry for arm in arms.values() for entry in arm]
    runs = [entry.run for entry in entries]
    yield (
        "Fidelity is calibrated: 0, the control is ignored; 1, as good as this VAE can draw. Convergence step: the "
        "first probe at 0.5 or more that stays there for two more, after the probe in brackets."
    )
    for column, short in short_names(entries[0].varied).items():
        if short != column:
            yield f"{short}: {column}."
    if any(read_prompt_ablation(run) for run in runs):
        yield (
            "Kinds of prompt (ControlNet, figure 8): none is empty, an insufficient one says nothing of the map, a "
            "conflicting one is another held-out item's, the perfect one is the item's own. Each has its own floor."
        )
    if any(run.probe.get("degenerate") for run in runs):
        yield "*: floor and ceiling coincide, so this base cannot show control; its fidelity is 0 by definition."
    commits = sorted({str(version) for version in _versions(runs)})
    if len(commits) > 1:
        yield f"Made by different commits of the code: {', '.join(commits)}."
    drawing = [run for run in runs if run.pictured()]
    conditions = _conditions(arms)
    if len(conditions) > 1:
        yield (
            f"Fidelity is measured by each run's own condition ({', '.join(conditions)}): where one has more than"
            " another, it need not obey better."
        )
    shared = shared_items(drawing, by="control" if len(conditions) == 1 else "target")
    drawn = max((len(run.heldout.prompts) for run in drawing if run.heldout), default=0)
    if drawing and len(shared[0]) < drawn:
        number_shared = f"{len(shared[0])} of {drawn} held-out items" if shared[0] else "no held-out item"
        yield f"The runs share {number_shared}: their fidelities are of different items."
    for entry in entries:
        if because := entry.run.summary.get("stopped_because"):
            yield f"{entry.label} was ended at step {entry.run.summary.get('optimizer_steps', 0):,}: {because}."
    labels = [entry.label for entry in entries]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        yield f"Several runs with one configuration and seed ({'; '.join(twice)}): they are not independent."


def _average(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _mean(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    return mean_interval(there).words(form) if there else NO_VALUE
