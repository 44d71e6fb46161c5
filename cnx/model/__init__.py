"""How a control branch is wired into the base."""

from cnx.model.controlled import Controlled
from cnx.model.full import Full, LargeScale, SmallScale
from cnx.model.light import Light, LightBranch
from cnx.model.residuals import Residuals
from cnx.model.saved import read_branch

__all__ = ["Controlled", "Full", "LargeScale", "Light", "LightBranch", "Residuals", "SmallScale", "read_branch"]
