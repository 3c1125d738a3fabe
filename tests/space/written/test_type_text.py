"""Types as text, and back."""

from typing import Any, Literal, Optional

import pytest

from optuna_flyte_dsl.space.written.type_text import read_type, type_text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (Any, "Any"),
        (list[float], "list[float]"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (int | None, "int | None"),
        (Optional[str], "str | None"),
        (Literal["a", 1, True], "Literal['a', 1, True]"),
        (list[Literal["a"] | int] | None, "list[Literal['a'] | int] | None"),
    ],
)
def test_a_type_is_the_same_after_it_was_written_and_read(kind, text):
    assert type_text(kind) == text
    assert read_type(text) == kind


@pytest.mark.parametrize("kind", [pytest, Exception, list[Exception], tuple[int, ...], Literal[b"x"]])
def test_other_types_have_no_text(kind):
    assert type_text(kind) is None


@pytest.mark.parametrize("text", ["open", "int.real", "list[open]", "(lambda: 1)()", "int |", "[" * 200, "Literal[x]"])
def test_other_texts_stand_for_no_type(text):
    with pytest.raises(ValueError):
        read_type(text)
