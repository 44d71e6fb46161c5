"""Draw docs/conditions.webp, pictures under every condition that needs no weights: python docs/conditions.py"""

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from cnx.data.synthetic import Birds, Fill50K
from cnx.report.sheet import contact_sheet

CONDITIONS = [
    "canny", "hough", "hed", "softedge", "scribble", "fake_scribble", "lineart", "lineart_anime", "shuffle", "tile",
    "inpaint",
]  # fmt: skip
SIZE = 192


def main() -> None:
    here = Path(__file__).parent
    pictures = [Birds().draw(3, SIZE).target, Birds().draw(12, SIZE).target, Fill50K().draw(4, SIZE).target]
    groups = {"the picture": pictures}
    for name in CONDITIONS:
        with initialize_config_dir(str(here.parent / "conf"), version_base="1.3"):
            condition = instantiate(compose("config", overrides=[f"condition={name}"]).condition)
        groups[name] = [condition.display(condition(picture)) for picture in pictures]
    sheet = contact_sheet(
        np.stack([picture for group in groups.values() for picture in group]), list(groups), columns=2
    )
    sheet.save(here / "conditions.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
