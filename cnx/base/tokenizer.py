"""A CLIP tokenizer for a base with a small vocabulary of its own."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer


def train_tokenizer(prompts: Iterable[str], length: int, vocabulary: int = 4096) -> CLIPTokenizer:
    """Learn a CLIPTokenizer in which every word of `prompts` is one token, as far as `vocabulary` allows.

    `length` is the number of tokens of an encoded prompt, start and end included. Byte-level BPE with CLIP's `</w>`
    and special tokens, so other words are spelt out of smaller pieces and nothing is unknown.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = CLIPTokenizer().backend_tokenizer  # CLIP's own normaliser and word splitting
    bpe.model = models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        # Letters too, and each as the last of a word: the trainer would number those that it meets in random order,
        # break ties between merges by number, and not know the others.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(prompts, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]  # its type is too narrow for what it takes
    return CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=length)
