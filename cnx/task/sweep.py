"""Sweeps: several runs of one command, recorded so that they can be gone on with, and compared at the end.

Hydra's sweeper makes the jobs and its launcher runs them, here or on a cluster. What they have come to stands in the
sweep folder alone: each job writes `jobs/<number>.json` itself, since it may run in another process or on another
machine, and `sweep.json` gathers them. So a sweep is resumed by launching it again: a job looks at its own file first.
"""

import gc
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import rich
from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cnx.errors import InputError, line_for_user
from cnx.task.mistakes import check_job

# What needs an extra of pyproject.toml: the plugin's module and the extra.
EXTRAS = {
    "launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "launcher=slurm": ("hydra_submitit_launcher", "slurm"),
    "launcher=submitit": ("hydra_submitit_launcher", "slurm"),
    "launcher=ray": ("hydra_ray_launcher", "ray"),
    "sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
}

State = Literal["planned", "running", "finished", "failed", "stopped"]


@dataclass
class Job:
    """One run of a sweep, as `jobs/<number>.json` of the sweep folder `sweep` holds it.

    Attributes:
        overrides: what the command line would say, as Hydra gives them to the job.
        state: `running` is also what a killed job leaves behind.
        run_folder: relative to the sweep folder; None before the run has one.
        error: why it failed, in one line.
        summarised: whether the finished run left a summary.json, as a training does: it can be compared.
    """

    sweep: Path
    number: int
    overrides: list[str]
    state: State = "planned"
    run_folder: str | None = None
    error: str | None = None
    summarised: bool = True

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls(sweep=file.parent.parent, **_read_json(file, "delete it, and that run is begun anew"))

    @classmethod
    def current(cls) -> Self | None:
        """The job that this process is at, as it stands in its file; None outside a sweep."""
        if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
            return None
        cfg = HydraConfig.get()
        job = cls(Path(cfg.sweep.dir), cfg.job.num, of_the_run(typed(cfg.overrides.task)))
        return cls.read(job.file) if job.file.exists() else job

    @property
    def file(self) -> Path:
        return self.sweep / "jobs" / f"{self.number}.json"

    @property
    def folder(self) -> Path | None:
        """The run folder, relative to the working directory."""
        return Path(os.path.relpath(self.sweep / self.run_folder)) if self.run_folder else None

    @property
    def is_lost(self) -> bool:
        """Whether the run was finished, and its folder, or what can be compared of it, is not where it was."""
        if self.state != "finished" or self.folder is None:
            return False
        return _summary(self) is None if self.summarised else not self.folder.is_dir()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "sweep"}

    def update(self, **changes: Any) -> None:
        """Write what has changed to the job's file, over what stands there by now, and to sweep.json."""
        held = Job.read(self.file) if self.file.exists() else self
        vars(self).update(vars(held) | changes)
        _write_json(self.file, self.to_json())
        gather(self.sweep)

    def note_run_folder(self, folder: Path) -> None:
        """Write where the run is, as soon as it has a folder: a killed run is found again."""
        self.update(run_folder=Path(os.path.relpath(folder, self.sweep)).as_posix())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process at this job, for as long as this one lives. Raises InputError if another is at it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.file.with_suffix(".lock"), timeout=0):
                yield
        except Timeout as error:
            raise InputError(f"{self.file}: another process is at this run; wait for it, or stop it first") from error


def jobs_of(sweep: Path) -> list[Job]:
    """The jobs that the sweep folder knows of, in order."""
    return sorted(map(Job.read, (sweep / "jobs").glob("*.json")), key=lambda job: job.number)


def gather(sweep: Path, arguments: Sequence[str] | None = None) -> None:
    """Write sweep.json: what was typed (`arguments`, or as it stands there) and every job."""
    file = sweep / "sweep.json"
    given = _read_json(file, NO_ARGUMENTS)["arguments"] if arguments is None else [*arguments]
    _write_json(file, {"arguments": given, "jobs": [job.to_json() for job in jobs_of(sweep)]})


def _ending_the_program(method: Callable[..., None]) -> Callable[..., None]:
    """`method`, leaving by SystemExit where something is wrong: Hydra makes warnings of a callback's exceptions."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            if (line := line_for_user(error)) is None:
                traceback.print_exc()
            sys.exit(f"cnx: {line}" if line else 1)

    return call


class Sweep(Callback):
    """What Hydra calls before the first and after the last job of a sweep, in the process that was started.

    Attributes:
        folder: the sweep folder, from the first job on.
        under_way: the same, until its comparison is begun.
    """

    folder: ClassVar[Path | None] = None
    under_way: ClassVar[Path | None] = None

    @_ending_the_program
    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make the sweep folder and write down the jobs, or find there what an earlier sitting left."""
        jobs, arguments = planned(config), typed(config.hydra.overrides.task)
        if jobs == []:
            raise InputError(f"{shlex.join(arguments)}: the sweep has no runs; name at least one value")
        launcher = [override for override in arguments if override.startswith("launcher=")]
        for job in jobs or []:  # a mistake in the last one shows before the first has run
            check_job(config, [*launcher, *job])
        given = typed(config.hydra.overrides.hydra)
        kept = [override for override in given if not override.startswith("hydra.sweep.dir=")]
        sweep = Path(config.hydra.sweep.dir) if kept != given else _new_folder(Path(config.hydra.sweep.dir))
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(sweep)
            config.hydra.overrides.hydra = [*kept, f"hydra.sweep.dir='{sweep}'"]  # each job is composed from these
        earlier = jobs_of(sweep)
        if jobs and any(job.number >= len(jobs) or job.overrides != jobs[job.number] for job in earlier):
            raise InputError(f"{sweep}: holds other runs than this command makes; start a new sweep")
        (sweep / "jobs").mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(jobs or []):
            job = Job(sweep, number, overrides)
            if not job.file.exists():
                _write_json(job.file, job.to_json())
        gather(sweep, [*arguments, *(override for override in kept if not override.startswith("hydra.mode="))])
        Sweep.folder = Sweep.under_way = sweep
        done = sum(job.state == "finished" and not job.is_lost for job in earlier)
        count = f"{len(jobs)} runs" if jobs else "runs as the sweeper chooses them"
        _say(f"Sweep {sweep}: {count}" + (f", {done} of them finished" if done else ""))

    @_ending_the_program
    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare what has finished, and end with status 1 if anything has not."""
        Sweep.under_way = None
        if status := conclude(Path(config.hydra.sweep.dir)):
            sys.exit(status)


def planned(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job that Hydra's own sweeper will make; None where another sweeper chooses as it goes."""
    if _searches(config.hydra.sweeper):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(
        [*params, *typed(config.hydra.overrides.task)]
    )
    return [of_the_run(job) for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]]


def _searches(sweeper: Any) -> bool:
    """Whether it chooses values by what came of earlier ones, as Hydra's own sweeper does not."""
    return not str(sweeper._target_).endswith(".BasicSweeper")


def of_the_run(overrides: Sequence[str]) -> list[str]:
    """What makes a run: where it is done may be another place when its sweep is gone on with."""
    return [override for override in overrides if not override.startswith("launcher=")]


def typed(overrides: Any) -> list[str]:
    """Hydra's ListConfig of overrides as they were typed, `${...}` and all."""
    listed: Any = OmegaConf.to_container(overrides)
    return listed


def conclude(sweep: Path) -> int:
    """Compare the finished runs, say what is missing and how to go on; the exit status: 0 if nothing is missing."""
    from cnx.report.compare import compare

    gather(sweep)
    jobs = jobs_of(sweep)
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()

    def what(job: Job) -> str:
        return " ".join(override for override in job.overrides if override not in common) or f"job {job.number}"

    missing = {
        what(job): job.state + (f": {job.error}" if job.error else "") for job in jobs if job.state != "finished"
    }
    missing |= {
        what(job): f"finished, but {job.folder} is not there; move it back, or delete {job.file} to do it again"
        for job in jobs
        if job.is_lost
    }
    done = [job for job in jobs if job.state == "finished" and not job.is_lost]
    finished = [job.folder for job in done if job.folder and job.summarised]
    if finished:
        rich.get_console().print(compare(finished, sweep, missing=missing, title=f"Sweep {sweep.name}"))
        _say(f"The comparison is in {sweep}")
    if not missing:
        return 0
    _say(f"{len(missing)} of {len(jobs)} runs have not finished:")
    for name, reason in missing.items():
        _say(f"  {name}: {reason}")
    _say(how_to_go_on(sweep))
    return 1


def conclude_after_failure() -> None:
    """Conclude a sweep whose launcher has failed: Hydra calls nobody then, and what had finished stands."""
    sweep, Sweep.under_way = Sweep.under_way, None
    if sweep:
        _say("cnx: the launcher has failed, for the reason above; resume= takes another, or other options of it")
        conclude(sweep)


def how_to_go_on(sweep: Path) -> str:
    return f"To complete it: python run.py resume={sweep}"


def run_job(cfg: DictConfig, task: Callable[[DictConfig], None]) -> float | None:
    """Do one job of a sweep unless it is done, from its checkpoint if it has one, and write down what it comes to.

    A task that raises does not stop the sweep. Returns the run's calibrated control fidelity, for a sweeper that
    searches; None where there is none, which such a sweeper counts as a failed trial.
    """
    job = Job.current()
    assert job is not None
    wanted = of_the_run(typed(HydraConfig.get().overrides.task))
    changed = f"{job.file}: was {shlex.join(job.overrides)}, and is now {shlex.join(wanted)}"
    if job.overrides != wanted and not _searches(HydraConfig.get().sweeper):
        sys.exit(f"cnx: {changed}; start a new sweep")
    try:
        with job.lock():
            if job.overrides != wanted:  # a trial that had failed has come to something since, which the search goes by
                _say(f"{changed}; it is done anew")
                job.update(overrides=wanted, state="planned", run_folder=None, error=None)
            if job.state in ("running", "stopped", "failed") and _summary(job):  # after its last line
                job.update(state="finished", error=None)
            if job.state != "finished":
                _do(job, cfg, task)
            if job.state == "failed":  # here, where its traceback no longer holds on to anything
                _abandon()
    except InputError as error:  # the lock's
        _say(f"cnx: {error}")
    return ((_summary(job) or {}).get("control_fidelity") or {}).get("calibrated")


def _do(job: Job, cfg: DictConfig, task: Callable[[DictConfig], None]) -> None:
    for logger in cfg.logger.values():
        if "group" in logger and logger.group is None:
            logger.group = f"{HydraConfig.get().runtime.choices.get('sweep') or 'sweep'}/{job.sweep.name}"
    environment, arguments = dict(os.environ), sys.argv
    job.update(state="running", error=None)
    try:
        cfg = _resumed(job, cfg)
        # Lightning starts the processes of further devices with this command line: theirs is this one run.
        sys.argv = [sys.argv[0], *typed(HydraConfig.get().overrides.task), "hydra.mode=RUN"]
        task(cfg)
        job.update(state="finished", summarised=_summary(Job.read(job.file)) is not None)
    except KeyboardInterrupt:
        job.update(state="stopped")
        raise
    except Exception as error:
        line = line_for_user(error)
        if line is None:
            report = job.file.with_suffix(".txt")
            report.write_text(traceback.format_exc(), encoding="utf-8")
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({report})"
        job.update(state="failed", error=line)
        _say(f"cnx: {line}")
    finally:
        # What one run leaves in the environment (ranks, ports, its run folder) is not the next one's.
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments


def _resumed(job: Job, cfg: DictConfig) -> DictConfig:
    """`cfg` with `resume` set where the job has a checkpoint to go on from, as if `resume=<run folder>` were typed."""
    from cnx.task.train import finished_steps

    folder = job.folder
    if not folder or not (folder / "checkpoints" / "last.ckpt").is_file():
        return cfg
    try:
        finished_steps(folder, cfg.trainer)
    except InputError:  # damaged
        return cfg
    hydra: Any = HydraConfig.get()
    with read_write(hydra):
        hydra.overrides.task = [f"resume={folder}"]
    return OmegaConf.merge(cfg, {"resume": str(folder)})  # pyright: ignore[reportReturnType]


def _abandon() -> None:
    """Let go of what a failed run holds: the device's memory, and its wandb run, which the next would go on with."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (wandb := sys.modules.get("wandb")) and wandb.run is not None:
        wandb.finish(exit_code=1)


def _summary(job: Job) -> dict[str, Any] | None:
    file = job.folder / "summary.json" if job.folder else None
    return _read_json(file, "delete it, and that run is shown as unfinished") if file and file.is_file() else None


def installed(plugin: str) -> bool:
    """Whether the Hydra plugin of that module name is there."""
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{plugin}") is not None


def check_extras(arguments: Sequence[str]) -> None:
    """Raise InputError if an argument asks for a launcher or a sweeper that is not installed."""
    for argument in arguments:
        plugin, extra = EXTRAS.get(argument, ("", ""))
        if plugin and not installed(plugin):
            raise InputError(f"{argument}: is not installed; pip install -e '.[{extra}]'")


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line again, a `resume=<sweep folder>` in it replaced by what that sweep was started with.

    Beside it a launcher may be given, since where runs are done does not change them. Raises InputError for anything
    else: runs that are finished would not be what it says.
    """
    folders = [Path(a.removeprefix("resume=").strip("'\"")) for a in arguments if a.startswith("resume=")]
    if not folders or not (folders[-1] / "sweep.json").is_file():
        return list(arguments)
    sweep = folders[-1]
    more = [argument for argument in arguments if not argument.startswith("resume=")]
    for argument in more:
        if not argument.startswith(("launcher=", "hydra.launcher.", "-")):
            raise InputError(f"{argument}: a resumed sweep keeps what it was started with; leave it out")
    started = _read_json(sweep / "sweep.json", NO_ARGUMENTS)["arguments"]
    given = {argument.partition("=")[0] for argument in more}
    launcher = next((argument for argument in more if argument.startswith("launcher=")), None)
    if launcher and launcher not in started:  # another has other options
        started = [argument for argument in started if not argument.startswith("hydra.launcher.")]
    kept = [argument for argument in started if argument.partition("=")[0] not in given]
    return ["-m", *kept, *more, f"hydra.sweep.dir='{sweep}'"]


def _new_folder(folder: Path) -> Path:
    """Make the folder, under a name that is not taken."""
    for again in range(1000):
        new = folder if again == 0 else folder.with_name(f"{folder.name}-{again}")
        try:
            new.mkdir(parents=True)
            return new
        except FileExistsError:  # another sweep began in the same second
            continue
    raise InputError(f"{folder}: is taken, and so are a thousand names like it")


NO_ARGUMENTS = "it held what the sweep was started with; start a new sweep"


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); {remedy}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several jobs gather into sweep.json
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _say(line: str) -> None:
    rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)
