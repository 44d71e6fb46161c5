"""A branch that has been trained before."""

from diffusers import ModelMixin

from cnx.base import Base, find_folder
from cnx.errors import InputError
from cnx.model import read_branch


class Pretrained:
    """Take the branch from `path`: a ControlNet's folder in diffusers format, or the run folder of a finished run.

    For sampling with a trained ControlNet, or to go on from one condition to another (arXiv 2302.05543v1). Only the
    branch is taken: a base that was trained beside it is given by base.path=<run folder>/base. Where a model leaves
    skips unconnected, their zero convolutions stay zero. Raises InputError if nothing is saved there, or if kind or
    widths are not this model's; the line names what differs.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, base: Base, branch: ModelMixin) -> None:
        folder = find_folder(self.path)
        if folder is None:
            raise InputError(f"init.path={self.path}: no such folder; give a ControlNet in diffusers format or a run")
        if (folder / "config.yaml").is_file() and not (folder / "controlnet").is_dir():
            raise InputError(f"{folder}: no controlnet/ there yet; finish the run with python run.py resume={folder}")
        inside = folder / "controlnet"
        weights = read_branch(inside if inside.is_dir() else folder, branch)
        branch.load_state_dict({name: weights[name] for name in branch.state_dict()})
