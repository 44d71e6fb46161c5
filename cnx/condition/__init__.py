"""Kinds of control: each turns a photo into a control map and says how well a drawn image obeys one."""

from cnx.condition.canny import Canny
from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.condition.given import Given

__all__ = ["Agreement", "Canny", "Condition", "Given", "Pixels"]
