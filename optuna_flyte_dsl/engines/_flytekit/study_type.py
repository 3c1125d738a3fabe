"""Carries an `optuna.Study` between tasks as a file: a journal of Optuna's, which a later Optuna opens too."""

import asyncio
import os
import pathlib
from typing import Any

import optuna
from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer
from flytekit.models.core.types import BlobType
from flytekit.models.literals import Blob, BlobMetadata, Literal, Scalar
from flytekit.models.types import LiteralType

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.study.study_file import read_study, write_study

_TYPE = BlobType(format="optuna-study", dimensionality=BlobType.BlobDimensionality.SINGLE)


class StudyTransformer(AsyncTypeTransformer[optuna.Study]):
    """Makes `optuna.Study` a type of Flyte's. The study that a task gets is in memory, and has all that is stored."""

    def __init__(self) -> None:
        # A user of `pyflyte run` gives the path of a file, so flytekit must not check the value's class.
        super().__init__("optuna_flyte_dsl study", optuna.Study, enable_type_assertions=False)

    def get_literal_type(self, t: type[optuna.Study]) -> LiteralType:  # noqa: ARG002
        return LiteralType(blob=_TYPE)

    def guess_python_type(self, literal_type: LiteralType) -> type[optuna.Study]:
        if literal_type.blob is not None and literal_type.blob.format == _TYPE.format:
            return optuna.Study
        raise ValueError(f"{literal_type} is not the type of a study.")

    async def async_to_literal(
        self,
        ctx: FlyteContext,
        python_val: Any,
        python_type: type[optuna.Study],  # noqa: ARG002
        expected: LiteralType,  # noqa: ARG002
    ) -> Literal:
        if isinstance(python_val, str | os.PathLike):
            local = pathlib.Path(os.fspath(python_val))
            await asyncio.to_thread(read_study, local)  # raises an error if the file holds no study
        elif isinstance(python_val, optuna.Study):
            local = pathlib.Path(ctx.file_access.get_random_local_path("study.journal"))
            local.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(write_study, python_val, local)
        else:
            cure = " Await the search first, as in `await train()`." if asyncio.iscoroutine(python_val) else ""
            raise TypeError(f"An optuna.Study is expected, or the path of its file, but got {shown(python_val)}.{cure}")
        uri = await ctx.file_access.async_put_raw_data(str(local))
        return Literal(scalar=Scalar(blob=Blob(metadata=BlobMetadata(type=_TYPE), uri=uri)))

    async def async_to_python_value(
        self,
        ctx: FlyteContext,
        lv: Literal,
        expected_python_type: type[optuna.Study],  # noqa: ARG002
    ) -> optuna.Study:
        local = pathlib.Path(ctx.file_access.get_random_local_path("study.journal"))
        local.parent.mkdir(parents=True, exist_ok=True)
        assert lv.scalar is not None
        assert lv.scalar.blob is not None
        await ctx.file_access.async_get_data(lv.scalar.blob.uri, str(local), is_multipart=False)
        return await asyncio.to_thread(read_study, local)
