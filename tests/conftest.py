"""The base that ships with the repository, and nothing from the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Before torch is imported: processes beside each other share out the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))

import copy  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPTextModel  # noqa: E402

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


# What makes the published architectures small and leaves them their kind: 4 levels, 32 groups, their count of heads.
SMALLER: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 48},
    "sd21": {"block_out_channels": [64, 64, 128, 128], "cross_attention_dim": 32, "attention_head_dim": [1, 1, 2, 2]},
}


@pytest.fixture(scope="session", params=SMALLER)
def version(request: pytest.FixtureRequest) -> str:
    """A published Stable Diffusion: sd15, sd21."""
    return request.param


@pytest.fixture(scope="session")
def architecture(version: str) -> DictConfig:
    """conf/base/architecture/<version>.yaml, made small."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        small = compose("config", overrides=[f"base={version}"]).base.architecture
    width = SMALLER[version]["cross_attention_dim"]
    text = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {"unet": SMALLER[version], "vae": {"block_out_channels": [32, 32, 32, 32]}, "text_encoder": text}
    merged = OmegaConf.merge(small, parts)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.fixture(scope="session")
def scatter() -> Callable[[nn.Module], None]:
    """Moves every weight from where its library puts it, zeros and ones of many layers included; they stay halves."""

    @torch.no_grad()
    def moved(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
            parameter.copy_(parameter.half())

    return moved


@pytest.fixture(scope="session")
def small(architecture: DictConfig, scatter: Callable[[nn.Module], None]) -> Base:
    """A base of that architecture in which no two weights are alike. Shared: not to be changed."""
    torch.manual_seed(0)
    parts = {name: instantiate(part, _convert_="all") for name, part in architecture.items()}
    base = Base(**{**parts, "text_encoder": CLIPTextModel(parts["text_encoder"])})
    scatter(base)
    return base
