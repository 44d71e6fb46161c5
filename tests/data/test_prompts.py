import pytest

from cnx.data.prompts import PROMPT_MODES, conflicting, prompts_of, read_prompt_modes
from cnx.errors import InputError

BIRDS = [
    "two white birds flying in the blue sky",
    "a red bird flying over the sea",
    "two white birds flying in the blue sky",
    "three white birds flying in the sunset sky",
]


def test_each_kind_of_prompt_is_what_the_paper_calls_it() -> None:
    assert prompts_of("none", BIRDS, "fine") == [""] * 4
    assert prompts_of("insufficient", BIRDS, "fine") == ["fine"] * 4
    assert prompts_of("perfect", BIRDS, "fine") == BIRDS
    assert prompts_of("conflicting", BIRDS, "fine") == [BIRDS[1], BIRDS[2], BIRDS[1], BIRDS[1]]


def test_a_conflicting_prompt_is_another_items_and_never_the_same_words() -> None:
    assert all(BIRDS[other] != BIRDS[item] for item, other in enumerate(conflicting(BIRDS)))
    # As little in common with all others: each takes the next, and not all of them one.
    assert conflicting(["red", "green", "blue", "white"]) == [1, 2, 3, 0]
    assert conflicting(["", "red"]) == [1, 0]
    # Another case is another prompt, but has all words in common.
    assert conflicting(["A bird", "a bird", "a cat"]) == [2, 2, 0]


@pytest.mark.parametrize("prompts", [["a bird"], ["a bird", "a bird"]])
def test_where_no_prompt_conflicts_the_line_says_so(prompts: list[str]) -> None:
    with pytest.raises(InputError, match="prompt_mode=conflicting: .* all have the prompt 'a bird'"):
        conflicting(prompts)


def test_modes_are_one_or_a_list_or_all_in_the_papers_order() -> None:
    assert read_prompt_modes("all") == PROMPT_MODES
    assert read_prompt_modes("none") == ("none",)
    assert read_prompt_modes(["perfect", "none"]) == ("none", "perfect")
    for wrong, named in (
        ("own", "prompt_mode=own"),
        (["none", "x"], r"prompt_mode=\[none,x\]"),
        ([], r"prompt_mode=\[\]"),
    ):
        with pytest.raises(InputError, match=f"{named}: must be all, one of none, insufficient, conflicting, perfect"):
            read_prompt_modes(wrong)
