"""A tokenizer with a vocabulary of its own: every word of the captions is one token, and any other word is spelt."""

import pytest
from transformers import CLIPTokenizer

from cnx.base import Base, train_tokenizer
from cnx.data.synthetic import Birds, Fill50K, Scenes

SETS = [Birds(), Fill50K()]


@pytest.fixture(scope="module")
def trained() -> CLIPTokenizer:
    return train_tokenizer(["two white birds", "a wheel under the clouds", "two clouds"], length=12)


@pytest.mark.parametrize("scenes", SETS, ids=lambda scenes: scenes.name)
def test_every_word_of_a_caption_is_one_token_of_the_shipped_base(tiny: Base, scenes: Scenes) -> None:
    spelt = [word for word in scenes.vocabulary() if len(tiny.tokenizer.tokenize(word)) != 1]
    assert spelt == []


@pytest.mark.parametrize("scenes", SETS, ids=lambda scenes: scenes.name)
def test_the_longest_caption_fits_into_the_shipped_base(tiny: Base, scenes: Scenes) -> None:
    captions = {scenes.prompt(index) for index in range(1500)}
    longest = max(len(tiny.tokenizer(caption)["input_ids"]) for caption in captions)
    assert longest <= tiny.tokenizer.model_max_length
    assert tiny.tokenizer.model_max_length == tiny.text_encoder.config.max_position_embeddings


@pytest.mark.parametrize("prompt", ["zebra", "a Zebra, 7 quizzes!", "Grüße 鳥", "clouds' wheels"])
def test_unknown_words_are_spelt_and_nothing_is_lost(trained: CLIPTokenizer, prompt: str) -> None:
    # The unknown token is <|endoftext|>, as CLIP has it.
    tokens = trained.tokenize(prompt)
    assert trained.unk_token not in tokens
    spelt = trained.decode(trained.convert_tokens_to_ids(tokens))
    assert spelt.replace(" ", "") == prompt.lower().replace(" ", "")


def test_learnt_words_are_one_token_wherever_they_stand(trained: CLIPTokenizer) -> None:
    prompt = "under two white birds a wheel"
    assert trained.tokenize(prompt) == [f"{word}</w>" for word in prompt.split()]


def test_encoded_prompts_begin_end_and_are_padded_to_length(trained: CLIPTokenizer) -> None:
    encoded = trained(["two birds", "two " * 50], padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert all(len(ids) == 12 and ids[0] == trained.bos_token_id and ids[-1] == trained.eos_token_id for ids in encoded)
    assert encoded[0][3:] == [trained.eos_token_id] * 9


def test_the_same_prompts_give_the_same_tokenizer_in_any_order() -> None:
    prompts = [Fill50K().prompt(index) for index in range(500)]
    first, second = train_tokenizer(prompts, length=12), train_tokenizer(prompts[::-1], length=12)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
