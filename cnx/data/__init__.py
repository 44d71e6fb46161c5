"""Datasets, the data module, the cache of latents and prompt embeddings."""

from cnx.data.folder import Item, load_image, load_pair, read_folder
from cnx.data.module import Batch, ControlData, HeldOut
from cnx.data.order import SeededBatches

__all__ = ["Batch", "ControlData", "HeldOut", "Item", "SeededBatches", "load_image", "load_pair", "read_folder"]
