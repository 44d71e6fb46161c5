"""Data sets drawn by the program itself, so that every experiment runs without a download."""

from cnx.data.synthetic.birds import Birds
from cnx.data.synthetic.dogs import Dogs
from cnx.data.synthetic.fill50k import Fill50K
from cnx.data.synthetic.generate import generate
from cnx.data.synthetic.pair import Pair, Scenes

__all__ = ["Birds", "Dogs", "Fill50K", "Pair", "Scenes", "generate"]
