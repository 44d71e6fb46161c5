"""How a control branch is wired into the base."""

from cnx.model.full import Full
from cnx.model.residuals import Residuals

__all__ = ["Full", "Residuals"]
