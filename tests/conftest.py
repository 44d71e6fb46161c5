"""The base that ships with the repository, and nothing from the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import copy  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch import Tensor  # noqa: E402

from cnx.base import Base  # noqa: E402

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working directory for all real runs, so that data and cache are made once."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture
def in_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.fixture(scope="session")
def tiny_conf() -> DictConfig:
    """conf/base/tiny.yaml, its path made absolute."""
    conf = OmegaConf.load(REPOSITORY / "conf" / "base" / "tiny.yaml")
    assert isinstance(conf, DictConfig)
    conf.path = str(REPOSITORY / conf.path)
    return conf


@pytest.fixture(scope="session")
def tiny(tiny_conf: DictConfig) -> Base:
    """The shipped base. Shared: not to be changed."""
    return Base.load(tiny_conf.path)


@pytest.fixture
def own_tiny(tiny: Base) -> Base:
    """A copy of the shipped base, which a test may change."""
    return copy.deepcopy(tiny)


@pytest.fixture
def inputs(tiny: Base) -> dict[str, Tensor]:
    """x_t, t, text and control of four items; timesteps from the first to the last."""
    generator = torch.Generator().manual_seed(1)
    return {
        "x_t": torch.randn(4, 4, 16, 16, generator=generator),
        "t": torch.tensor([0, 1, 500, 999]),
        "text": tiny.encode_text(["two white birds flying in the sunset sky", "", "blue circle", "a green zebra"]),
        "control": torch.rand(4, 3, 128, 128, generator=generator),
    }
