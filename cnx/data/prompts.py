"""The prompts that held-out items are drawn under: their own, and those of the paper's ablation."""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from cnx.errors import InputError

PromptMode = Literal["none", "insufficient", "conflicting", "perfect"]
PROMPT_MODES: tuple[PromptMode, ...] = get_args(PromptMode)


def read_prompt_modes(value: Any) -> tuple[PromptMode, ...]:
    """The modes that `value` asks for: one of PROMPT_MODES, a list of them, or "all". Raises InputError."""
    asked = [value] if isinstance(value, str) else list(value or ())
    if asked == ["all"]:
        return PROMPT_MODES
    if not asked or any(mode not in PROMPT_MODES for mode in asked):
        given = f"[{','.join(map(str, asked))}]" if len(asked) != 1 else asked[0]
        raise InputError(f"prompt_mode={given}: must be all, one of {', '.join(PROMPT_MODES)}, or a list of them")
    return tuple(mode for mode in PROMPT_MODES if mode in asked)


def prompts_of(mode: PromptMode, own: Sequence[str], default: str) -> list[str]:
    """A prompt for each held-out item (ControlNet, section 4, "Ablative study", figure 8).

    none is ""; insufficient is `default`, which does not say what the map shows; conflicting is the prompt of another
    item (`conflicting`); perfect is the item's own. Raises InputError as `conflicting` does.
    """
    if mode == "conflicting":
        return [own[other] for other in conflicting(own)]
    return list(own) if mode == "perfect" else [{"none": "", "insufficient": default}[mode]] * len(own)


def conflicting(prompts: Sequence[str]) -> list[int]:
    """For each item the place of another one, whose prompt contradicts it: that with the least share of common words.

    Of several with an equally small share (of the words of both), the first that follows the item, so that items do
    not all take the same. In `data=birds` another prompt has another number, colour or sky.

    Raises InputError if all prompts are the same.
    """
    words = [frozenset(re.findall(r"\w+", prompt.lower())) for prompt in prompts]
    count, found = len(prompts), []
    for item in range(count):
        others = [(item + k) % count for k in range(1, count)]
        others = [other for other in others if prompts[other] != prompts[item]]
        if not others:
            raise InputError(
                f"prompt_mode=conflicting: the {count} held-out items all have the prompt {prompts[item]!r}, so none"
                " conflicts; leave conflicting out, or give more held-out items"
            )
        found.append(min(others, key=lambda other: _common(words[item], words[other])))
    return found


def _common(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / (len(first | second) or 1)
