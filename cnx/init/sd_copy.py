"""The published start: the branch is a copy of the base's encoder."""

from diffusers import ControlNetModel, ModelMixin

from cnx.base import Base
from cnx.errors import InputError


class SDCopy:
    """Copy the base's encoder and middle into the branch; zero convolutions stay zero (ControlNet, docs/train.md).

    Raises InputError for a branch that is built otherwise than the base's encoder.
    """

    def __call__(self, base: Base, branch: ModelMixin) -> None:
        if not isinstance(branch, ControlNetModel):
            raise InputError(
                "init=sd_copy: a light branch (model=lite, mlp) has no layers that the base's encoder could be copied"
                " into; give init=random_control, which keeps its own random start"
            )
        weights = base.unet.state_dict()
        copied = {name: weights[name] for name in branch.state_dict() if name in weights}
        branch.load_state_dict(copied, strict=False)
