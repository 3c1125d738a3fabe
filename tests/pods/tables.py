"""A user's file with tables: a class of rows that Flyte carries as a structured dataset."""

from __future__ import annotations

import json
import pathlib

import flytekit as fl
from flytekit.core.context_manager import FlyteContext
from flytekit.models import literals
from flytekit.models.literals import StructuredDatasetMetadata
from flytekit.models.types import StructuredDatasetType
from flytekit.types.structured.structured_dataset import (
    StructuredDataset,
    StructuredDatasetDecoder,
    StructuredDatasetEncoder,
    StructuredDatasetTransformerEngine,
)

from optuna_flyte_dsl import Float, optimize


class Rows(list):
    """The rows of a table."""


class WriteRows(StructuredDatasetEncoder):
    """Writes rows without flytekit's data access layer, as flytekit's own encoders of tables do."""

    def __init__(self) -> None:
        super().__init__(Rows, "file", "jsonl")

    def encode(
        self, ctx: FlyteContext, dataset: StructuredDataset, structured_dataset_type: StructuredDatasetType
    ) -> literals.StructuredDataset:
        folder = pathlib.Path(ctx.file_access.get_random_remote_directory())
        folder.mkdir(parents=True)
        (folder / "rows").write_text("\n".join(map(json.dumps, dataset.dataframe)))
        return literals.StructuredDataset(
            uri=str(folder), metadata=StructuredDatasetMetadata(structured_dataset_type=structured_dataset_type)
        )


class ReadRows(StructuredDatasetDecoder):
    """Reads what `WriteRows` has written."""

    def __init__(self) -> None:
        super().__init__(Rows, "file", "jsonl")

    def decode(
        self,
        ctx: FlyteContext,
        flyte_value: literals.StructuredDataset,
        current_task_metadata: StructuredDatasetMetadata,
    ) -> Rows:
        return Rows(map(json.loads, pathlib.Path(flyte_value.uri, "rows").read_text().splitlines()))


for handler in (WriteRows(), ReadRows()):
    StructuredDatasetTransformerEngine.register(handler, default_for_type=True)


@optimize(concurrency=2, n_trials=2, progress=False, seed=1)
@fl.task
def reads_rows(x: Float(0, 1), rows: Rows) -> float:
    return x
