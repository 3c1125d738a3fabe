"""Converts inputs and outputs between Python and Flyte, in a thread, and tells whether two inputs are the same."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from flyteidl.admin.execution_pb2 import WorkflowExecutionGetDataResponse
from flyteidl.core import literals_pb2
from flytekit.core.context_manager import FlyteContext, flyte_context_Var
from flytekit.core.type_engine import LiteralsResolver, TypeEngine
from flytekit.models.literals import LiteralMap
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl.errors import ArgumentError
from optuna_flyte_dsl.flyte.local import use_own_loop
from optuna_flyte_dsl.flyte.registry import Launchable


class Converter:
    """Converts by the data access of a remote.

    Args:
        remote: The remote.
    """

    def __init__(self, remote: FlyteRemote) -> None:
        self._context: FlyteContext = remote.context
        self._prefix = str(remote.file_access.raw_output_prefix)
        # As FlyteRemote does it before it launches: from a laptop, files go up by signed URLs.
        remote.file_access._get_upload_signed_url_fn = functools.partial(  # type: ignore[attr-defined]
            remote.client.get_upload_signed_url, project=remote.default_project, domain=remote.default_domain
        )

    def _enter(self) -> FlyteContext:
        use_own_loop()
        flyte_context_Var.set([self._context])
        return self._context

    def inputs(self, name: str, target: Launchable, given: Mapping[str, Any]) -> literals_pb2.LiteralMap:
        """Return the inputs of an execution; local files in them are uploaded.

        Args:
            name: What messages call the entity.
            target: What is launched.
            given: The arguments of the call.

        Raises:
            ArgumentError: If one is missing.
        """
        context = self._enter()
        values = {**target.defaults, **given}
        literals = literals_pb2.LiteralMap()
        required = target.required - values.keys()
        if required:
            raise ArgumentError(f"`{name}` needs a value for {', '.join(f'`{each}`' for each in sorted(required))}.")
        for key, value in values.items():
            kind = target.interface.inputs[key].type
            literal = TypeEngine.to_literal(context, value, target.python_interface.inputs[key], kind)
            literals.literals[key].CopyFrom(literal.to_flyte_idl())
        return literals

    def arguments(
        self, target: Launchable, names: Sequence[str], data: WorkflowExecutionGetDataResponse
    ) -> dict[str, Any]:
        """Return some inputs of an execution as Python values.

        Args:
            target: What was launched.
            names: Of the inputs.
            data: Flyte's answer.
        """
        context = self._enter()
        literals = self._whole(context, data.full_inputs, data.inputs).literals
        return {
            name: TypeEngine.to_python_value(context, literals[name], target.python_interface.inputs[name])
            for name in names
        }

    def outputs(self, target: Launchable, data: WorkflowExecutionGetDataResponse) -> Any:
        """Return the outputs of an execution as Python values."""
        context = self._enter()
        literals = self._whole(context, data.full_outputs, data.outputs)
        resolver = LiteralsResolver(literals.literals, target.interface.outputs, context)
        return resolver.as_python_native(target.python_interface)

    def same_inputs(self, ours: literals_pb2.LiteralMap, data: WorkflowExecutionGetDataResponse) -> bool:
        """Tell whether an execution has the inputs that a launch would give it.

        Defaults that Flyte has added do not count. Where ours is a file that was uploaded just now, its place is new
        each time and does not count.
        """
        theirs = self._whole(self._enter(), data.full_inputs, data.inputs).to_flyte_idl()
        return all(
            name in theirs.literals and self._same(literal, theirs.literals[name])
            for name, literal in ours.literals.items()
        )

    @staticmethod
    def _whole(context: FlyteContext, full: literals_pb2.LiteralMap, blob: Any) -> LiteralMap:
        """Return literals that come inline, or, where they are too large, as a file."""
        if not full.literals and blob.bytes > 0:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "literals.pb")
                context.file_access.get_data(blob.url, path)
                with open(path, "rb") as file:
                    full = literals_pb2.LiteralMap.FromString(file.read())
        whole: LiteralMap = LiteralMap.from_flyte_idl(full)
        return whole

    def _same(self, ours: literals_pb2.Literal, theirs: literals_pb2.Literal) -> bool:
        which = ours.WhichOneof("value")
        if which != theirs.WhichOneof("value"):
            return False
        if which == "collection":
            return self._all_same(ours.collection.literals, theirs.collection.literals)
        if which == "map":
            mine, other = ours.map.literals, theirs.map.literals
            return mine.keys() == other.keys() and all(self._same(mine[key], other[key]) for key in mine)
        if which != "scalar":
            return bool(ours == theirs)
        kind = ours.scalar.WhichOneof("value")
        if kind != theirs.scalar.WhichOneof("value"):
            return False
        if kind == "union":
            return self._same(ours.scalar.union.value, theirs.scalar.union.value)
        if kind in ("blob", "schema", "structured_dataset"):
            mine, other = getattr(ours.scalar, kind), getattr(theirs.scalar, kind)
            return bool(mine.uri == other.uri) or str(mine.uri).startswith(self._prefix)
        return bool(ours.scalar == theirs.scalar)

    def _all_same(self, ours: Sequence[literals_pb2.Literal], theirs: Sequence[literals_pb2.Literal]) -> bool:
        return len(ours) == len(theirs) and all(map(self._same, ours, theirs))
