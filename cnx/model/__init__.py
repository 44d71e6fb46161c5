"""How a control branch is wired into the base, and how it is stored."""

from cnx.model.controlled import Controlled
from cnx.model.formats import DiffusersFolder, Format, OriginalFile, OriginalWithBase, read_whole
from cnx.model.full import Full, LargeScale, SmallScale
from cnx.model.light import Light, LightBranch
from cnx.model.residuals import Residuals
from cnx.model.saved import SavedBranch, find_branch, plain_settings, read_branch, read_saved

__all__ = [
    "Controlled",
    "DiffusersFolder",
    "Format",
    "Full",
    "LargeScale",
    "Light",
    "LightBranch",
    "OriginalFile",
    "OriginalWithBase",
    "Residuals",
    "SavedBranch",
    "SmallScale",
    "find_branch",
    "plain_settings",
    "read_branch",
    "read_saved",
    "read_whole",
]
