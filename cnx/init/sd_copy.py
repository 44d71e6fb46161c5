"""The published start: the branch is a copy of the base's encoder."""

from diffusers import ControlNetModel

from cnx.base import Base


class SDCopy:
    """Copy the base's encoder and middle into the branch; zero convolutions stay zero (ControlNet, docs/train.md)."""

    def __call__(self, base: Base, branch: ControlNetModel) -> None:
        weights = base.unet.state_dict()
        copied = {name: weights[name] for name in branch.state_dict() if name in weights}
        branch.load_state_dict(copied, strict=False)
