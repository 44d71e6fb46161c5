"""What the documentation shows runs as it stands there."""

import re
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cnx.condition import Condition
from cnx.data.synthetic import Birds


def files(page: Path) -> dict[str, str]:
    """The indented blocks of a page that open with a file's name in a comment."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    code = "\n".join(textwrap.dedent(block) for block in blocks)
    parts = re.split(r"^# ([\w/.]+\.(?:py|yaml))\n", code, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_example_of_a_new_condition_works(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = files(repository / "docs" / "conditions.md")
    assert list(found) == ["cnx/condition/grey.py", "conf/condition/grey.yaml", "tests/condition/test_grey.py"]
    modules = {}
    for name in ("cnx/condition/grey.py", "tests/condition/test_grey.py"):
        file = tmp_path / Path(name).name
        file.write_text(found[name], encoding="utf-8")
        dotted = name.removesuffix(".py").replace("/", ".")
        spec = spec_from_file_location(dotted, file)
        assert spec is not None and spec.loader is not None
        modules[name] = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, dotted, modules[name])
        spec.loader.exec_module(modules[name])
    birds = [Birds().draw(index, 128).target for index in range(2)]
    modules["tests/condition/test_grey.py"].test_colours_do_not_matter_and_brightness_does(birds)
    grey = instantiate(OmegaConf.create(found["conf/condition/grey.yaml"]))
    assert isinstance(grey, Condition) and np.ptp(grey(birds[0]), axis=2).max() == 0


def test_the_table_of_conditions_has_every_option(repository: Path) -> None:
    rows = re.findall(
        r"^\| (\w+) \|", (repository / "docs" / "conditions.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    options = {file.stem for file in (repository / "conf" / "condition").glob("*.yaml")} - {"none"}
    assert set(rows) - {"condition"} == options
