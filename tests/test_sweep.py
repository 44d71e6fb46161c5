"""Real sweeps: killed and gone on with, runs that fail, Ctrl-C, several at once, and what bad input says."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from cnx.task.sweep import Job, conclude, installed, jobs_of, resumed_arguments
from small_runs import REPOSITORY
from small_runs import SMALL as SMALL_RUN

SMALL = [*SMALL_RUN, "callback.checkpoint.every=1"]
# What may befall a run, once: a mishap leaves a file behind, and does not happen again.
USERS = '''
import os, signal
from pathlib import Path
from lightning import Callback


class Mishaps(Callback):
    """Job 1 runs out of memory, job 2 is killed, or whatever job it is gets Ctrl-C."""

    def __init__(self, folder, job, what):
        self.folder, self.job, self.what = Path(folder), job, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (self.folder / f"threads-{self.job}").write_text(f"{__import__('torch').get_num_threads()} {os.getpid()}")
        mark = self.folder / f"job-{self.job}"
        if trainer.global_step != 2 or self.job not in self.what or mark.exists():
            return
        mark.touch()
        if self.what[self.job] == "memory":
            raise MemoryError("out of memory")
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "ctrl_c": signal.SIGINT}[self.what[self.job]])
'''


@pytest.fixture(autouse=True)
def in_workplace(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (tmp_path / "users.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))


def mishaps(folder: Path, **what: str) -> str:
    """The override that gives every run of a sweep its mishaps, as job0="kill"."""
    listed = ", ".join(f"{job.removeprefix('job')}: {mishap}" for job, mishap in what.items())
    return (f"+callback.user={{_target_: users.Mishaps, folder: {folder}, what: {{{listed}}},"
            " job: '${hydra:job.num}'}")  # fmt: skip


def command(*arguments: str) -> int | str | None:
    """Do in this process what `python run.py <arguments>` does; returns what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(REPOSITORY / "run.py"), *arguments])
        try:
            runpy.run_path(str(REPOSITORY / "run.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code
    return 0


def newest() -> Path:
    return max(Path("runs/multirun").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def states(sweep: Path) -> list[str]:
    gathered = [job["state"] for job in json.loads((sweep / "sweep.json").read_text())["jobs"]]
    assert gathered == [job.state for job in jobs_of(sweep)]
    return gathered


def comparison(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "comparison.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_2x2_with_a_failure_and_a_kill_is_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", "init=scratch,sd_copy", "seed=0,1", "trainer.max_steps=3", *SMALL]
    arguments.append(mishaps(tmp_path, job1="memory", job2="kill"))
    killed = subprocess.run([sys.executable, str(REPOSITORY / "run.py"), *arguments], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    sweep = newest()
    assert states(sweep) == ["finished", "failed", "running", "planned"]
    finished, failed, interrupted, _ = jobs_of(sweep)
    assert failed.error and failed.error.startswith("MemoryError: out of memory (") and "\n" not in failed.error
    assert "Traceback" in (sweep / "jobs" / "1.txt").read_text()
    assert finished.folder and interrupted.folder
    assert (interrupted.folder / "checkpoints" / "last.ckpt").is_file()
    kept = (finished.folder / "summary.json").stat().st_mtime_ns

    assert command(f"resume={sweep}") == 0
    assert states(sweep) == ["finished"] * 4
    after = jobs_of(sweep)
    assert [job.folder for job in after[:3]] == [finished.folder, failed.folder, interrupted.folder]
    assert (finished.folder / "summary.json").stat().st_mtime_ns == kept
    assert f"Run {interrupted.folder}:" in capsys.readouterr().out.replace("\n", "")
    with (interrupted.folder / "metrics.csv").open(newline="") as file:
        trained = [row["optimizer_step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert trained == ["1", "2", "3"]  # gone on with, not begun again in the same folder
    rows = comparison(sweep)
    assert [(row["init"], row["seed"]) for row in rows] == [
        ("scratch", "0"), ("scratch", "1"), ("sd_copy", "0"), ("sd_copy", "1"),
    ]  # fmt: skip
    assert [name for name in rows[0] if "callback" not in name][:2] == ["init", "seed"]  # what varied comes first
    assert all(row["control_fidelity"] for row in rows)
    # What failed after its summary (an upload, a page) is trained no second time.
    after[0].update(state="failed", error="OSError: no space left")
    assert command(f"resume={sweep}") == 0
    assert states(sweep) == ["finished"] * 4 and jobs_of(sweep)[0].error is None
    assert (finished.folder / "summary.json").stat().st_mtime_ns == kept


def test_a_run_that_fails_stops_no_other_and_is_reported_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "data.heldout=0,0.2", "trainer.max_steps=1", *SMALL[:2], *SMALL[3:]) == 1
    sweep = newest()
    assert states(sweep) == ["failed", "finished"]
    said = capsys.readouterr().out
    assert "1 of 2 runs have not finished" in said
    assert any(line.startswith("  data.heldout=0: failed: ") for line in said.splitlines())
    assert said.rstrip().endswith(f"python run.py resume={sweep}")
    assert [row["status"].split(":")[0] for row in comparison(sweep)] == ["finished", "failed"]
    assert not (sweep / "jobs" / "0.txt").exists()  # bad input is no bug: its line says it all

    finished = jobs_of(sweep)[1]
    assert finished.folder
    finished.folder.rename("elsewhere")
    assert command(f"resume={sweep}") == 1
    said = capsys.readouterr().out
    assert "0 of them finished" not in said and "2 of 2 runs have not finished" in said
    assert f"data.heldout=0.2: finished, but {finished.folder} is not there; move it back, or delete" in said
    finished.file.unlink()
    assert command(f"resume={sweep}") == 1
    assert states(sweep) == ["failed", "finished"] and jobs_of(sweep)[1].run_folder != finished.run_folder


def test_runs_of_a_task_that_leaves_no_summary_are_finished_and_not_compared(tmp_path: Path) -> None:
    for folder in ("base", "jobs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sweep.json").write_text('{"arguments": [], "jobs": []}')
    for number in (0, 1):
        Job(tmp_path, number, [f"seed={number}"], "finished", "base", summarised=False).update()
    assert conclude(tmp_path) == 0 and not (tmp_path / "comparison.md").exists()
    (tmp_path / "base").rmdir()
    assert conclude(tmp_path) == 1


def test_ctrl_c_stops_the_sweep_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["-m", "seed=0,1", "trainer.max_steps=4", *SMALL, mishaps(tmp_path, job0="ctrl_c")]
    stopped = command(*arguments)
    sweep = newest()
    assert stopped == f"cnx: stopped. To complete it: python run.py resume={sweep}"
    assert states(sweep) == ["stopped", "planned"]
    assert (
        command(f"resume={sweep}", "seed=3")
        == "cnx: seed=3: a resumed sweep keeps what it was started with; leave it out"
    )
    assert states(sweep) == ["stopped", "planned"]


def test_a_run_that_another_process_is_at_is_left_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/multirun/shared")
    (folder / "jobs").mkdir(parents=True)
    with FileLock(folder / "jobs" / "0.lock"):
        assert command("-m", "seed=5", "trainer.max_steps=1", *SMALL, f"hydra.sweep.dir={folder}") == 1
    assert states(folder) == ["planned"]
    assert "another process is at this run" in capsys.readouterr().out
    refused = command("-m", "seed=6", "trainer.max_steps=1", *SMALL, f"hydra.sweep.dir={folder}")
    assert isinstance(refused, str) and "holds other runs" in refused
    assert states(folder) == ["planned"]


def test_a_sweep_without_runs_is_an_error_and_leaves_nothing() -> None:
    before = set(Path("runs/multirun").glob("*"))
    line = command("-m", "init=glob(nothing*)")
    assert isinstance(line, str) and line.startswith("cnx: ") and "no runs" in line and "\n" not in line
    assert set(Path("runs/multirun").glob("*")) == before


@pytest.mark.parametrize("mistake, named", [("init=sd_copy,cany", "init=cany"), ("seed=0,one", "seed=one")])
def test_a_mistake_in_any_run_of_a_sweep_shows_before_the_first_and_leaves_nothing(mistake: str, named: str) -> None:
    before = set(Path("runs/multirun").glob("*"))
    line = command("-m", mistake)
    assert isinstance(line, str) and line.startswith(f"cnx: {named}: ") and "\n" not in line
    assert set(Path("runs/multirun").glob("*")) == before


def test_the_runs_of_a_sweep_are_one_wandb_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert command("-m", "seed=0", "trainer.max_steps=1", *SMALL[1:]) == 0
    sweep = newest()
    (job,) = jobs_of(sweep)
    assert job.folder
    assert f"group: sweep/{sweep.name}" in (job.folder / "config.yaml").read_text()


def test_another_launcher_takes_no_options_of_the_last_one_s(tmp_path: Path) -> None:
    started = ["seed=0,1", "launcher=joblib", "hydra.launcher.n_jobs=2"]
    (tmp_path / "sweep.json").write_text(json.dumps({"arguments": started, "jobs": []}))
    folder = f"hydra.sweep.dir='{tmp_path}'"
    assert resumed_arguments([f"resume={tmp_path}"]) == ["-m", *started, folder]
    assert resumed_arguments([f"resume={tmp_path}", "hydra.launcher.n_jobs=4"]) == [
        "-m", "seed=0,1", "launcher=joblib", "hydra.launcher.n_jobs=4", folder,
    ]  # fmt: skip
    assert resumed_arguments([f"resume={tmp_path}", "launcher=joblib"]) == [
        "-m", "seed=0,1", "hydra.launcher.n_jobs=2", "launcher=joblib", folder,
    ]  # fmt: skip
    assert resumed_arguments([f"resume={tmp_path}", "launcher=local"]) == ["-m", "seed=0,1", "launcher=local", folder]


def test_a_damaged_record_of_a_sweep_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"arguments": [')
    said = command(f"resume={tmp_path}")
    assert isinstance(said, str) and said.startswith(f"cnx: {tmp_path / 'sweep.json'}: is damaged")


def test_sweeps_show_in_tab_completion() -> None:
    asked = {"COMP_LINE": "run.py sweep=", "COMP_POINT": "13", **os.environ}
    query = [sys.executable, str(REPOSITORY / "run.py"), "--shell-completion", "query=bash"]
    assert "sweep=init_ablation" in subprocess.run(query, capture_output=True, text=True, env=asked).stdout


def test_an_extra_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnx.task.sweep.installed", lambda plugin: False)
    assert command("-m", "launcher=joblib", "seed=0,1") == (
        "cnx: launcher=joblib: is not installed; pip install -e '.[joblib]'"
    )


def launched(tmp_path: Path, *arguments: str) -> Path:
    """A sweep of two runs by another launcher, whose processes start like a user's; returns its folder."""
    arguments = ("-m", "seed=0,1", "trainer.max_steps=3", *SMALL, mishaps(tmp_path, job1="memory"), *arguments)
    first = subprocess.run([sys.executable, str(REPOSITORY / "run.py"), *arguments], capture_output=True, text=True)
    sweep = newest()
    assert first.returncode == 1, first.stdout + first.stderr
    assert states(sweep) == ["finished", "failed"], first.stdout + first.stderr
    here = [sys.executable, str(REPOSITORY / "run.py"), f"resume={sweep}"]
    again = subprocess.run(here, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert states(sweep) == ["finished", "finished"]
    assert [row["seed"] for row in comparison(sweep)] == ["0", "1"]
    return sweep


def needs(plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not installed(plugin), reason="needs an extra that is not installed")


@needs("hydra_joblib_launcher")
def test_joblib_runs_several_at_once_and_shares_out_the_cores(
    tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launched(tmp_path, "launcher=joblib", "hydra.launcher.n_jobs=2", "data.root=data/cold", "data.cache_folder=cold")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for job in (0, 1):
        threads, process = map(int, (tmp_path / f"threads-{job}").read_text().split())
        assert threads <= max(1, cores // 2) and process != os.getpid()


@needs("hydra_submitit_launcher")
def test_submitit_runs_them_in_processes_of_this_machine(tmp_path: Path) -> None:
    launched(tmp_path, "launcher=submitit")


@needs("hydra_ray_launcher")
def test_a_ray_of_this_machine_runs_them(tmp_path: Path) -> None:
    launched(tmp_path, "launcher=ray")


@needs("hydra_optuna_sweeper")
def test_optuna_searches_for_the_highest_fidelity_and_goes_on_as_it_would_have(tmp_path: Path) -> None:
    search = ["-m", "sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=tag(log,interval(1e-5,1e-3))"]
    assert command(*search, "trainer.max_steps=4", *SMALL, mishaps(tmp_path, job1="ctrl_c")) != 0
    sweep = newest()
    assert states(sweep) == ["finished", "stopped"]
    chosen = [job.overrides for job in jobs_of(sweep)]
    assert command(f"resume={sweep}") == 0
    assert states(sweep) == ["finished"] * 2
    assert [job.overrides for job in jobs_of(sweep)] == chosen
    assert len({row["optimizer.lr"] for row in comparison(sweep)}) == 2
    # A search that has learnt otherwise since chooses otherwise: that trial is done anew, and no other.
    first, second = jobs_of(sweep)
    second.update(overrides=[*second.overrides[:-1], "optimizer.lr=0.5"])
    assert command(f"resume={sweep}") == 0
    assert [job.overrides for job in jobs_of(sweep)] == chosen
    assert [job.run_folder == old.run_folder for job, old in zip(jobs_of(sweep), (first, second), strict=True)] == [
        True,
        False,
    ]


@needs("hydra_submitit_launcher")
def test_slurm_is_given_a_batch_script_with_what_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("srun", "sbatch"):  # a cluster that refuses every job, and keeps its script
        (tmp_path / name).write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    wanted = ["hydra.launcher.partition=gpu", "hydra.launcher.array_parallelism=1"]
    assert command("-m", "seed=0,1", "launcher=slurm", *wanted, *SMALL) == 1
    script = (tmp_path / "script").read_text().splitlines()
    for option in ("array=0-1%1", "cpus-per-task=8", "gpus-per-node=1", "job-name=cnx", "mem=32GB", "partition=gpu",
                   "time=240"):  # fmt: skip
        assert f"#SBATCH --{option}" in script
    assert any(line.startswith("srun ") and "submitit.core._submit" in line for line in script)
    assert states(newest()) == ["planned", "planned"]


@needs("hydra_submitit_launcher")
def test_what_had_finished_is_compared_when_a_launcher_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", "data.heldout=0,0.2", "trainer.max_steps=1", *SMALL[:2], *SMALL[3:]) == 1
    sweep = newest()
    (sweep / "comparison.csv").unlink()
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    capsys.readouterr()
    assert command(f"resume={sweep}", "launcher=slurm") == 1
    assert [row["status"].split(":")[0] for row in comparison(sweep)] == ["finished", "failed"]
    said = capsys.readouterr().out
    assert "the launcher has failed" in said and said.rstrip().endswith(f"python run.py resume={sweep}")
