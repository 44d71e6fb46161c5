"""From a folder of photos to a data set folder: find them, resize, annotate, caption, write.

Nothing is imported here: captions by BLIP bring transformers with them, and the others need not wait for it.
"""
