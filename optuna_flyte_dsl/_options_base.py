"""`CheckedOptions`, the base of dataclasses whose fields check their values; `check_names`, for unknown options."""

import ast
import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from optuna_flyte_dsl._option_checks import Check
from optuna_flyte_dsl.errors import InvalidOptionError


class CheckedOptions:
    """Base of a dataclass of options. A field is `name: Annotated[type, check] = default`, followed by a docstring."""

    _cures: ClassVar[Mapping[str, str]] = {}
    """What to write instead of a name that is no option, if that is known."""

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse names of unknown options, before Python does."""
        check_names(cls.__name__, given, cls.__dataclass_fields__, cures=cls._cures)  # type: ignore[attr-defined]
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, check in type(self)._checks().items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @classmethod
    @functools.cache
    def _checks(cls) -> dict[str, Check]:
        hints = typing.get_type_hints(cls, include_extras=True)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return {name: get_args(hints[name])[1] for name in names if get_origin(hints[name]) is Annotated}

    @classmethod
    @functools.cache
    def documentation(cls) -> dict[str, str]:
        """Return the docstring of each field, by name, on one line.

        The mapping is empty where Python has no source code, as in an interactive session.
        """
        try:
            source = inspect.getsource(cls)
        except (OSError, TypeError):
            return {}
        found: dict[str, str] = {}
        (tree,) = ast.parse(inspect.cleandoc(source)).body
        assert isinstance(tree, ast.ClassDef)
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = " ".join(text.split())
        return found

    @classmethod
    def fill_in(cls, docstring: str | None) -> str:
        """Replace `{options}` in a docstring by one line of documentation for each option, for its section `Args:`."""
        lines = "\n        ".join(f"{name}: {text}" for name, text in cls.documentation().items())
        return (docstring or "").replace("{options}", lines)

    @classmethod
    def signature(cls, *first: inspect.Parameter) -> inspect.Signature:
        """Return the class's signature, with the parameters `first` in front, and without the checks in annotations."""
        signature = inspect.signature(cls)
        parameters = [
            parameter.replace(annotation=get_args(kind)[0]) if get_origin(kind) is Annotated else parameter
            for parameter in signature.parameters.values()
            for kind in (parameter.annotation,)
        ]
        return signature.replace(parameters=[*first, *parameters], return_annotation=inspect.Signature.empty)

    def __repr__(self) -> str:
        changed = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            check = type(self)._checks().get(field.name)
            if value != (default if check is None or default is dataclasses.MISSING else check(field.name, default)):
                # The value of `storage` may be a URL with a password, so it is not shown.
                changed.append(f"{field.name}={'...' if field.name == 'storage' else repr(value)}")
        return f"{type(self).__name__}({', '.join(changed)})"


def check_names(
    caller: str, names: Iterable[str], known: Collection[str], cure: str = "", *, cures: Mapping[str, str] | None = None
) -> None:
    """Check that a call names known options only.

    For each unknown name, the error suggests the option with the same meaning or with the most similar name, if any.
    """
    wrong = [name for name in names if name not in known]
    meant = {name: _nearest(name, known) for name in wrong}
    if wrong:
        said = [cures[name] for name in wrong if cures is not None and name in cures]
        said += [f"Did you mean `{option}`?" for name, option in meant.items() if option and name not in (cures or ())]
        if not said or None in [option for name, option in meant.items() if name not in (cures or ())]:
            said.append(cure or f"It has {', '.join(f'`{each}`' for each in known)}.")
        listed = " and no option ".join(f"`{name}`" for name in wrong)
        raise InvalidOptionError(f"`{caller}` has no option {listed}. {' '.join(said)}")


_SYNONYMS = {
    "n_jobs": "concurrency",
    "max_concurrency": "concurrency",
    "max_trials": "n_trials",
    "num_trials": "n_trials",
    "load_if_exists": "study_name",
}
"""Names that other libraries have for options of a search."""


def _nearest(name: str, known: Collection[str]) -> str | None:
    if (synonym := _SYNONYMS.get(name)) in known:
        return synonym
    return next(iter(difflib.get_close_matches(name, known, 1)), None)
