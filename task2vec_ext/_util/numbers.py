"""Numbers that a user gave."""

from __future__ import annotations

import operator


def whole(who: str, name: str, value: int, least: int, most: int | None = None) -> int:
    """Return a whole number of any integer type as an int, or raise.

    Args:
        who: Whose argument, for the message.
        name: The argument's name.
        value: What was given.
        least: The smallest allowed.
        most: The largest allowed; default: no limit.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{who}: expected {name} as a whole number, got {value!r} ({type(value).__name__}).")
    if number < least or (most is not None and number > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{who}: expected {name} {limits}, got {number}.")
    return number
