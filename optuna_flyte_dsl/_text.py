"""Text for messages: a user's value, a number with its noun, and text that is safe for a terminal."""

from collections.abc import Iterable

_SHOWN_LIMIT = 300  # characters
_NAME_LIMIT = 512  # characters: the width of the columns of names in Optuna's databases


def shown(value: object, limit: int = _SHOWN_LIMIT) -> str:
    """Return a user's value as an error message shows it.

    The text is the value's repr, cut after `limit` characters. If the repr raises, the text is the value's class.
    """
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a user's `__repr__` may raise anything
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def text_of(error: BaseException) -> str:
    """Return an error's text, or a substitute text if the error's `__str__` raises."""
    try:
        # The text of a KeyError is the repr of its key, unless flytekit has replaced the key by a text of its own.
        is_text = isinstance(error, KeyError) and len(error.args) == 1 and "\n" in str(error.args[0])
        return str(error.args[0]) if is_text else str(error)
    except Exception:  # noqa: BLE001 - a user's `__str__` may raise anything
        return "<its text could not be made>"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where needed: "2 objectives"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return what a misspelt word may have meant: the most similar of the known words, if one is similar."""
    import difflib  # loaded late: only an error needs it

    word, folded = word.casefold(), {each.casefold(): each for each in known}
    near = difflib.get_close_matches(word, folded)
    near.sort(key=lambda each: sorted(each) != sorted(word))  # "lgo" is as similar to "low" as to "log"
    return folded[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest known word, after a blank; an empty text if no word is near."""
    near = nearest(word, known)
    return f" Did you mean `{near}`?" if near is not None else ""


def is_storable_name(name: str) -> bool:
    """Return whether each of Optuna's storages takes a name: 1 to 512 characters, without NUL and lone surrogates."""
    return 1 <= len(name) <= _NAME_LIMIT and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in name)


def printable(text: str) -> str:
    """Return a text in which control characters are escaped: an error's text may hold escape sequences."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
