"""Kinds of control: each turns a photo into a control map and says how well a drawn image obeys one."""

from cnx.condition.canny import Canny
from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.condition.depth import Depth
from cnx.condition.fake_scribble import FakeScribble
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.condition.given import Given
from cnx.condition.hough import Hough
from cnx.condition.inpaint import Inpaint
from cnx.condition.lineart import Lineart
from cnx.condition.lineart_anime import LineartAnime
from cnx.condition.normal import Normal
from cnx.condition.pose import Pose
from cnx.condition.scribble import Scribble
from cnx.condition.segmentation import Segmentation
from cnx.condition.several import Several, apart, parts_of
from cnx.condition.shuffle import Shuffle
from cnx.condition.softedge import SoftEdge
from cnx.condition.tile import Tile

__all__ = [
    "Agreement",
    "Canny",
    "Condition",
    "Depth",
    "FakeScribble",
    "GeometricCondition",
    "Geometry",
    "Given",
    "Hough",
    "Inpaint",
    "Lineart",
    "LineartAnime",
    "Normal",
    "Pixels",
    "Pose",
    "Scribble",
    "Segmentation",
    "Several",
    "Shuffle",
    "SoftEdge",
    "Tile",
    "apart",
    "parts_of",
]
