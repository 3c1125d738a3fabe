"""`CheckedOptions`, the base of dataclasses whose fields check their values."""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from optuna_flyte_dsl._option_checks import Check
from optuna_flyte_dsl._option_names import check_names


class CheckedOptions:
    """Base of a dataclass of options. A field is `name: Annotated[type, check] = default`, followed by a docstring."""

    _cures: ClassVar[Mapping[str, str]] = {}
    """What to write instead of a name that is no option, if that is known."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Refuse names of unknown options, before Python does."""
        names = [each.name for each in dataclasses.fields(cls)]  # type: ignore[arg-type]
        check_names(cls.__name__, given, names, cures=cls._cures)
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset([*names[: len(args)], *given]))
        return self

    def replaced(self, **changes: Any) -> Self:
        """Return other options, of which as many are given as of these, and those that change."""
        other = dataclasses.replace(self, **changes)  # type: ignore[type-var]
        object.__setattr__(other, "given", self.given | changes.keys())
        return other

    given: ClassVar[frozenset[str]] = frozenset()
    """The names of the options that were given; of an instance, although dataclasses must not see it as a field."""

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

        The mapping is empty where Python has no source code, as in an interactive session, and for a class that is not
        at the top of its module.
        """
        try:  # `inspect.getsource` of a class would take four times as long
            module = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
        except (KeyError, OSError, TypeError):
            return {}
        found: dict[str, str] = {}
        classes = (each for each in module.body if isinstance(each, ast.ClassDef) and each.name == cls.__qualname__)
        for statement, after in itertools.pairwise(next((each.body for each in classes), [])):
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
