"""CLIP tokenizers: one with a small vocabulary of its own, and CLIP's."""

import gzip
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from cnx.errors import InputError

CLIP_VOCABULARY = 49_408


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


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's own tokenizer, 49,408 tokens and prompts of 77, out of the merges that open_clip brings.

    `pad_token` is "<|endoftext|>" for Stable Diffusion 1 and "!", token 0, for 2. Raises InputError if open_clip has no
    merges.
    """
    package = find_spec("open_clip")  # importing it would take seconds
    file = Path(package.origin or "").parent / "bpe_simple_vocab_16e6.txt.gz" if package else None
    if file is None or not file.is_file():
        raise InputError(f"{file}: CLIP's merges are not there; install open_clip_torch again")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # After a heading, the merges that fill the vocabulary up, beside each letter twice and two special tokens.
    merges: Any = [tuple(line.split()) for line in lines[1 : CLIP_VOCABULARY - 2 * len(letters) - 1]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)
