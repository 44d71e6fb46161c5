"""The Stable Diffusion under control: load it, encode text, encode and decode images."""

from cnx.base.base import Base, find, find_folder, original_weights
from cnx.base.chunks import each_chunk, in_chunks
from cnx.base.tokenizer import clip_tokenizer, train_tokenizer
from cnx.base.weights import apart, check_same, kind_of, read_weights, weights_file, write_weights

__all__ = [
    "Base",
    "apart",
    "check_same",
    "clip_tokenizer",
    "each_chunk",
    "find",
    "find_folder",
    "in_chunks",
    "kind_of",
    "original_weights",
    "read_weights",
    "train_tokenizer",
    "weights_file",
    "write_weights",
]
