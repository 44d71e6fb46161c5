"""Compose the configuration from conf/, experiments/ and the command line, and hand it to the task.

python run.py --help lists every group and option.
"""

import logging
import multiprocessing
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

REPOSITORY = Path(__file__).parent


def mount(folder: str, group: str) -> None:
    """Offer the YAML files of `folder` as options of the Hydra group `group`; each names the run after itself.

    Hydra names a group after its directory, and a symbolic link under conf/ would not survive a Windows checkout.
    """
    for file in sorted((REPOSITORY / folder).glob("*.yaml")):
        node = OmegaConf.merge({"name": file.stem}, OmegaConf.load(file))
        ConfigStore.instance().store(group=group, name=file.stem, node=node, package="_global_")


def fast_precision() -> str:
    """Lightning's `precision` for this machine: bfloat16 with float32 master weights where the hardware has it."""
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def half_precision(accelerator: str) -> str:
    """Lightning's `precision` for half precision: bfloat16, or float16 for a GPU that is here and does not have it.

    Not for this machine's CPU: a plan for a GPU is to be the same on any.
    """
    if accelerator == "cpu":
        return "bf16-mixed"  # where the CPU does not have it, slowly
    import torch

    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "16-mixed" if lacking else "bf16-mixed"


def gpus() -> int:
    """The GPUs that one run takes: one, where this machine has any that torch can use."""
    import torch

    return int(torch.cuda.is_available())


def optimizer_steps(pairs: int, batch_size: int) -> int:
    """Optimizer steps in so many pairs, at least one: a spacing that is the same in samples seen."""
    return max(1, round(pairs / batch_size))


def quieten() -> None:
    """Keep the libraries' chatter off the terminal: what a run has to say, it says itself."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before diffusers imports it
    import diffusers
    import lightning  # noqa: F401  (sets its log level when imported)
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # reading maps takes a hundredth of a step
        ".*module.s. in eval mode at the start of training.*",  # the base is meant to be
        ".*isinstance.treespec, LeafSpec.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's
        ".*torch_dtype. is deprecated.*",  # older diffusers know no other name
    ):
        warnings.filterwarnings("ignore", message)


mount("experiments", group="experiment")
mount("sweeps", group="sweep")


def register_resolvers() -> None:
    """Offer functions of this file to the configuration, as ${fast_precision:}."""
    for resolver in (fast_precision, half_precision, gpus, optimizer_steps):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


register_resolvers()


def together(arguments: Sequence[str]) -> list[str]:
    """The command line again, `condition=[canny,depth]` in it as `condition=canny+depth`, an option that is made here.

    Hydra merges the options of one group that a list names into one. This option puts each under its own name instead,
    as a file conf/condition/canny_depth.yaml would. Raises InputError for a condition that is named twice.
    """
    from cnx.errors import InputError

    arguments = list(arguments)
    for place, argument in enumerate(arguments):
        key, given, value = argument.partition("=")
        if key != "condition" or not given:
            continue
        value = re.sub(r"\[([\w\s,]+)\]", lambda found: "+".join(found[1].replace(",", " ").split()), value)
        arguments[place] = f"{key}={value}"
        for option in re.findall(r"\w+(?:\+\w+)+", value):
            names = option.split("+")
            if len(set(names)) < len(names):
                raise InputError(f"{argument}: names a condition twice; leave one out")
            node = {"defaults": [f"{name}@{name}" for name in names], "_target_": "cnx.condition.Several"}
            ConfigStore.instance().store(group="condition", name=option, node=node)
    return arguments


def perform(cfg: DictConfig) -> None:
    """Do the task."""
    hydra.utils.instantiate(cfg.task)(cfg)


def execute(cfg: DictConfig) -> float | None:
    """Do the task; bad input ends the program with one line and exit status 1. A sweep's run returns its fidelity."""
    from cnx.errors import line_for_user
    from cnx.task.sweep import Job, run_job

    quieten()
    # Again, because a launcher's worker process does not run this file, but is given this function.
    register_resolvers()
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        # In a worker of joblib: the processes that draw the pictures, its children, know no such method.
        multiprocessing.set_start_method("spawn", force=True)
    if Job.current():
        return run_job(cfg, perform)
    try:
        perform(cfg)
    except KeyboardInterrupt:
        sys.exit("cnx: stopped")
    except Exception as error:
        if (line := line_for_user(error)) is None:
            raise
        sys.exit(f"cnx: {line}")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    from cnx.errors import InputError
    from cnx.task.mistakes import check_values

    try:
        check_values(cfg, HydraConfig.get().overrides.task)
    except InputError as error:
        sys.exit(f"cnx: {error}")
    return execute(cfg)


def command_line() -> None:
    """`main`, where `resume=<sweep folder>` stands for the sweep's own command, and conditions can be taken together.

    A sweep cut short says how to go on.
    """
    from cnx.errors import InputError
    from cnx.task.mistakes import line_for_mistake
    from cnx.task.sweep import Sweep, check_extras, conclude_after_failure, how_to_go_on, resumed_arguments

    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets its errors through to here, and prints no account of its own
    try:
        sys.argv[1:] = together(resumed_arguments(sys.argv[1:]))
        check_extras(sys.argv[1:])
        main()
    except InputError as error:
        sys.exit(f"cnx: {error}")
    except KeyboardInterrupt:
        sys.exit("cnx: stopped" + (f". {how_to_go_on(Sweep.folder)}" if Sweep.folder else ""))
    except Exception as error:
        line = line_for_mistake(error) if full_error == "0" else None
        if line:
            print(f"cnx: {line}", file=sys.stderr)
        else:
            traceback.print_exc()
        conclude_after_failure()
        sys.exit(1)
    except SystemExit:
        conclude_after_failure()
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error


if __name__ == "__main__":
    command_line()
