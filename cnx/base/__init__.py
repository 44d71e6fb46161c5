"""The Stable Diffusion under control: load it, encode text, encode and decode images."""

from cnx.base.base import Base, find_folder
from cnx.base.chunks import in_chunks
from cnx.base.tokenizer import train_tokenizer

__all__ = ["Base", "find_folder", "in_chunks", "train_tokenizer"]
