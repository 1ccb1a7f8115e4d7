"""Patterns in which `*` stands for any run of characters: matching, and whether one pattern lies within another."""

from __future__ import annotations

from collections.abc import Iterable

MAX_PATTERN_CHARS = 128


def matches(pattern: str, text: str) -> bool:
    """Tell whether `text` is in the language of `pattern`; linear in memory, no backtracking explosion."""
    return _matches(pattern, text, literal_star=False)


def within(narrow: str, wide: str) -> bool:
    """Tell whether everything that `narrow` matches is matched by `wide` too.

    Exact, not an approximation: put a letter that `wide` does not contain in place of each star of `narrow`. The result
    is matched by `narrow`, so `wide` must match it, and only its stars can take that letter; conversely a star that
    takes the letter takes whatever the letter stands for.
    """
    return _matches(wide, narrow, literal_star=True)


def all_within(narrow: Iterable[str], wide: Iterable[str]) -> bool:
    """Tell whether every pattern of `narrow` lies within one of `wide`; by the same argument, within their union."""
    outer = tuple(wide)
    return all(any(within(each, other) for other in outer) for each in narrow)


def _matches(pattern: str, text: str, *, literal_star: bool) -> bool:
    """Greedy matching with one point to fall back to; a `*` in `text` is a letter that only a star may take."""
    at, place, star, resume = 0, 0, -1, 0
    while at < len(text):
        if place < len(pattern) and pattern[place] == "*":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] == text[at] and not (literal_star and text[at] == "*"):
            at += 1
            place += 1
        elif star >= 0:
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return all(char == "*" for char in pattern[place:])
