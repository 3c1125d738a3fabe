"""Makes `optuna.Trial` a native type of flytekit: a task gets a trial as a text that names it."""

import uuid
import weakref
from typing import Any

from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer
from flytekit.models.literals import Literal, Primitive, Scalar
from flytekit.models.types import LiteralType, SimpleType
from optuna.trial import BaseTrial

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import OptunaFlyteError

_LOCAL = "local:"
_trials_here: weakref.WeakValueDictionary[str, BaseTrial] = weakref.WeakValueDictionary()


class TrialTransformer(AsyncTypeTransformer[Any]):
    """Converts a trial to a string: a key of the trial in this process, or a `TrialHandle`."""

    def __init__(self, kind: type[BaseTrial]) -> None:
        super().__init__(f"optuna_flyte_dsl {kind.__name__}", kind, enable_type_assertions=False)

    def get_literal_type(self, t: Any) -> LiteralType:  # noqa: ARG002
        return LiteralType(simple=SimpleType.STRING)

    async def async_to_literal(
        self,
        ctx: FlyteContext,  # noqa: ARG002
        python_val: Any,
        python_type: Any,  # noqa: ARG002
        expected: LiteralType,  # noqa: ARG002
    ) -> Literal:
        """Convert a trial of this process, or the handle of a trial for another process."""
        # Loaded late: only a call of a task needs it.
        from optuna_flyte_dsl.engines.remote_trial.handle import TrialHandle

        if isinstance(python_val, TrialHandle):
            text = python_val.to_text()
        elif isinstance(python_val, BaseTrial):
            text = f"{_LOCAL}{uuid.uuid4().hex}"
            _trials_here[text] = python_val
        else:
            raise TypeError(f"An `optuna.Trial` is needed, but got {shown(python_val)}.")
        return Literal(scalar=Scalar(primitive=Primitive(string_value=text)))

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:  # noqa: ARG002
        """Return a trial of this process, or connect to the trial of a handle."""
        assert lv.scalar is not None
        assert lv.scalar.primitive is not None
        text = str(lv.scalar.primitive.string_value)
        if not text.startswith(_LOCAL):
            from optuna_flyte_dsl.engines.remote_trial.handle import TrialHandle  # loaded late, as above

            return TrialHandle.from_text(text).open()
        trial = _trials_here.get(text)
        if trial is None:
            raise OptunaFlyteError(f"The trial {text} belongs to another process.")
        return trial
