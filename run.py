"""Compose the configuration from conf/, experiments/ and the command line, and hand it to the task.

python run.py --help lists every group and option.
"""

import logging
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

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


def quieten() -> None:
    """Keep the libraries' chatter off the terminal: what a run has to say, it says itself."""
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
OmegaConf.register_new_resolver("fast_precision", fast_precision)


def execute(cfg: DictConfig) -> None:
    """Do the task; bad input ends the program with one line and exit status 1."""
    from cnx.errors import InputError

    quieten()
    try:
        hydra.utils.instantiate(cfg.task)(cfg)
    except InputError as error:
        sys.exit(f"cnx: {error}")
    except InstantiationException as error:  # Hydra wraps what a constructor raises
        if not isinstance(error.__cause__, InputError):
            raise
        sys.exit(f"cnx: {error.__cause__}")
    except KeyboardInterrupt:
        sys.exit("cnx: stopped")
    except MissingMandatoryValue as error:
        sys.exit(f"cnx: {error.full_key} must be given: {error.full_key}=...")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    execute(cfg)


if __name__ == "__main__":
    main()
