"""A CLIP tokenizer for a base with a small vocabulary of its own."""

import json
from collections.abc import Iterable

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
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # Sorted, so that the order in which prompts were met cannot change the vocabulary.
    bpe.train_from_iterator(sorted(prompts), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokens = dict(learnt["vocab"])
    for letter in alphabet:  # the trainer knows a last letter only where it has seen one
        tokens.setdefault(letter + "</w>", len(tokens))
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=length)
