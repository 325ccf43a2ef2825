"""Words: arguments that are one of a `Literal`, and counted things."""

from __future__ import annotations

from typing import Any, get_args


def check_word(who: str, name: str, value: object, words: Any) -> None:
    """Raise ValueError unless a value is one of a Literal's words.

    Args:
        who: Whose argument, for the message.
        name: The argument's name.
        value: What was given.
        words: The Literal.
    """
    known = get_args(words)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{who}: expected {name} to be one of {', '.join(known)}; got {value!r}.")


def counted(number: int, what: str) -> str:
    """Return ``"1 task"``, ``"1,234 tasks"``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
