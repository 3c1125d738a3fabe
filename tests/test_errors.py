"""What the errors tell."""

import pytest

from optuna_flyte_dsl.errors import ExecutionFailedError


@pytest.mark.parametrize(
    ("message", "kinds", "caught"),
    [
        ("Traceback\n  File x\nMessage:\n\n    ValueError: boom\n", (ValueError,), True),
        ("Traceback\n\nUser error.\nMessage:\n\n    ValueError: boom", (ArithmeticError,), False),
        ("Message:\n\n    ZeroDivisionError: x", (ArithmeticError,), True),
        ("Message:\n\n    torch.cuda.OutOfMemoryError: x", (ValueError,), False),
        ("", (ValueError,), False),
    ],
)
def test_an_execution_stands_for_what_was_raised_in_its_pod(message, kinds, caught):
    error = ExecutionFailedError("t", name="n", url="u", phase="FAILED", code="", kind="USER", message=message)
    assert error.stands_for(kinds) is caught
