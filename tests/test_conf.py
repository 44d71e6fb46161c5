"""Every YAML file composes, and no experiment sets a key that does not exist."""

import re
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from cnx.task.mistakes import check_values
from cnx.task.sweep import EXTRAS, installed, planned
from small_runs import REPOSITORY, composed

EXPERIMENTS = sorted(file.stem for file in (REPOSITORY / "experiments").glob("*.yaml"))
SWEEPS = sorted(file.stem for file in (REPOSITORY / "sweeps").glob("*.yaml"))
MISSING = [option for option, (plugin, _) in EXTRAS.items() if not installed(plugin)]
OPTIONS = [
    pytest.param(option, marks=pytest.mark.skipif(option in MISSING, reason="needs an extra that is not installed"))
    for file in sorted((REPOSITORY / "conf").glob("*/*.yaml"))
    if file.stem != "cnx" and (option := f"{file.parent.name}={file.stem}")
]


# Groups that one task alone has.
TASKS = {"control_mode": "task=sample", "format": "task=convert", "resize": "task=prepare", "caption": "task=prepare"}
NEEDED = {
    **{f"data={format}": ["data.root=photos"] for format in ("folder", "imagefolder", "huggingface", "shards")},
    "init=pretrained": ["init.path=trained"],
}


def keys(cfg: DictConfig, prefix: str = "") -> set[str]:
    found = set()
    for key in cfg:
        found.add(f"{prefix}{key}")
        if not OmegaConf.is_missing(cfg, key) and isinstance(cfg._get_node(key), DictConfig):
            found |= keys(cfg._get_node(key), f"{prefix}{key}.")
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_its_interpolations_resolve(option: str) -> None:
    task = TASKS.get(option.partition("=")[0])
    beside = [task] if task else NEEDED.get(option, [])
    cfg = composed(option, *beside)
    OmegaConf.resolve(cfg)


# Options whose _target_ lies in an optional package.
PACKAGES = {"optimizer=adam8bit": "bitsandbytes"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_target_that_an_option_names_is_there(option: str) -> None:
    def targets(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "_target_":
                    yield value
                yield from targets(value)

    if option in PACKAGES:
        pytest.importorskip(PACKAGES[option])
    cfg = OmegaConf.load(REPOSITORY / "conf" / "{}/{}.yaml".format(*option.split("=")))
    for target in targets(OmegaConf.to_container(cfg)):
        assert callable(get_object(target)), target


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_sets_only_keys_that_its_groups_have(experiment: str) -> None:
    file = OmegaConf.load(REPOSITORY / "experiments" / f"{experiment}.yaml")
    groups = []
    for entry in file.pop("defaults", []):
        chosen = {"experiment": entry} if isinstance(entry, str) else entry  # it may build on another
        groups += [f"{key.removeprefix('override ').lstrip('/')}={option}" for key, option in chosen.items()]
    unknown = keys(file) - keys(composed(*groups))
    assert not unknown, f"experiments/{experiment}.yaml sets keys that nothing reads: {sorted(unknown)}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_claim_command_cost_expectation_and_measurement(experiment: str) -> None:
    text = (REPOSITORY / "experiments" / f"{experiment}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\ndefaults")]
    words = ["Claim:", f"Command: python run.py experiment={experiment}", "Cost:", "Expected:", "Measured:"]
    if parents := [entry for entry in OmegaConf.create(text).defaults if isinstance(entry, str)]:
        words = [*words[1:4], f"An arm of {parents[0]}"]  # which has the others
    for word in words:
        assert word in header
    assert composed(f"experiment={experiment}").name == experiment


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_makes_runs_that_compose_and_sets_only_keys_that_are_there(sweep: str) -> None:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[f"sweep={sweep}"], return_hydra_config=True)
        assert cfg.hydra.mode == RunMode.MULTIRUN and cfg.name == sweep
        jobs = planned(cfg)
        assert jobs and len(jobs) > 1
        # The seeds of an arm compose alike.
        for job in {tuple(given for given in job if not given.startswith("seed=")) for job in jobs}:
            overrides = [f"sweep={sweep}", *job]
            composed_job = compose("config", overrides=overrides)
            check_values(composed_job, overrides)
            OmegaConf.resolve(composed_job)
    file = OmegaConf.load(REPOSITORY / "sweeps" / f"{sweep}.yaml")
    file.pop("hydra")
    file.pop("defaults", None)
    # lightning.Trainer takes more than conf/trainer/auto.yaml names.
    unknown = {key for key in keys(file) - keys(composed()) if not key.startswith("trainer.")}
    assert not unknown, f"sweeps/{sweep}.yaml sets keys that nothing reads: {sorted(unknown)}"


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_opens_with_claim_source_command_cost_expectation_and_measurement(sweep: str) -> None:
    text = (REPOSITORY / "sweeps" / f"{sweep}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\nhydra:")]
    words = ["Claim:", "Source:", f"Command: python run.py sweep={sweep}", "Cost:", "Expected:", "Measured:"]
    if told := re.search(r"Claim, source, expectation and what was measured: experiments/(\w+)\.yaml", header):
        assert told[1] in EXPERIMENTS
        words = words[2:4]
    for word in words:
        assert word in header


def test_an_experiment_beats_the_groups_and_the_command_line_beats_the_experiment() -> None:
    assert composed("experiment=attempt7_birds").trainer.max_steps == 4735
    assert composed("experiment=attempt7_birds", "trainer.max_steps=7").trainer.max_steps == 7
    assert composed("experiment=attempt7_birds").init._target_ == "cnx.init.GaussianControl"


@pytest.mark.parametrize("base", ["sd15", "sd21"])
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "pretrain_tiny"])
def test_an_experiment_on_stable_diffusion_has_the_settings_of_its_sources(experiment: str, base: str) -> None:
    cfg = composed(f"experiment={experiment}", f"base={base}", "data=folder", "data.root=photos")
    OmegaConf.resolve(cfg)
    assert cfg.data.resolution == 512 and cfg.data.batch_size in (1, 4, 8)
    assert cfg.optimizer.lr == 1e-5 and cfg.cooldown == 0 and cfg.warmup_steps == 0
    assert cfg.sampler.guidance == 9.0 and cfg.sampler.steps == 20
    assert cfg.prompt_dropout == 0.5 and list(cfg.base.hint_channels) == [16, 32, 96, 256]
    if "unlock" in cfg.model:  # a random base is trained as fast as the branch, a pretrained one slower
        assert cfg.model.unlocked_lr == (1e-5 if cfg.init._target_ == "cnx.init.Scratch" else 2e-6)
