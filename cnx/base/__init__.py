"""The Stable Diffusion under control: load it, encode text, encode and decode images."""

from cnx.base.base import Base
from cnx.base.tokenizer import train_tokenizer

__all__ = ["Base", "train_tokenizer"]
