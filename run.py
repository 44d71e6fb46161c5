"""Compose the configuration from conf/, experiments/ and the command line, and hand it to the task.

python run.py --help lists every group and option.
"""

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
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
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


mount("experiments", group="experiment")
OmegaConf.register_new_resolver("fast_precision", fast_precision)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from cnx.errors import InputError

    try:
        hydra.utils.instantiate(cfg.task)(cfg)
    except InputError as error:
        sys.exit(f"cnx: {error}")


if __name__ == "__main__":
    main()
