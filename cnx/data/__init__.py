"""Data sets, the held-out split, the order of training, the cache of latents and prompt embeddings.

Nothing is imported here: the processes that draw synthetic pictures would each wait seconds for torch.
"""
