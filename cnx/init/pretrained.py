"""A branch that has been trained before."""

from diffusers import ModelMixin

from cnx.base import Base
from cnx.model import find_branch, read_branch


class Pretrained:
    """Take the branch from `path`: a ControlNet in any format, the run folder of a finished run, or a hub's id.

    For sampling with a trained ControlNet, or to go on from one condition to another (arXiv 2302.05543v1). Only the
    branch is taken: a base that was trained beside it is given by base.path=<run folder>/base. Where a model leaves
    skips unconnected, their zero convolutions stay zero. `trust` reads a pickle that can run any code. Raises
    InputError if nothing is saved there, or if kind or widths are not this model's; the line names what differs.
    """

    def __init__(self, path: str, trust: bool = False) -> None:
        self.path, self.trust = path, trust

    def __call__(self, base: Base, branch: ModelMixin) -> None:
        trust = None if self.trust else "init.trust=true"
        weights = read_branch(find_branch(self.path, "init.path"), branch, trust)
        branch.load_state_dict({name: weights[name] for name in branch.state_dict()})
