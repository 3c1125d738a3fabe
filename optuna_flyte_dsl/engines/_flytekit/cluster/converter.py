"""Converts inputs and outputs between Python and Flyte. All methods block."""

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from flyteidl.admin.common_pb2 import UrlBlob
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetDataResponse
from flyteidl.core import literals_pb2
from flytekit.core.context_manager import FlyteContext, flyte_context_Var
from flytekit.core.data_persistence import FileAccessProvider
from flytekit.core.type_engine import LiteralsResolver, TypeEngine
from flytekit.models.literals import LiteralMap

from optuna_flyte_dsl._compat.flytekit import set_upload_location
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable
from optuna_flyte_dsl.engines._flytekit.cluster.uploads import Uploads, digest
from optuna_flyte_dsl.engines._flytekit.event_loops import use_own_loop
from optuna_flyte_dsl.engines._flytekit.literal_cache import lock_literal_cache
from optuna_flyte_dsl.engines.remote_trial.handle import TrialHandle
from optuna_flyte_dsl.errors import ArgumentError


class Converter:
    """Converts literals, with the data access of a remote."""

    def __init__(self, admin: Admin) -> None:
        remote = admin.remote
        lock_literal_cache()
        self._context: FlyteContext = remote.context
        self._prefix = str(remote.file_access.raw_output_prefix)
        get_signed_url = functools.partial(
            admin.paced(remote.client.get_upload_signed_url),
            project=remote.default_project,
            domain=remote.default_domain,
        )
        set_upload_location(remote.file_access, get_signed_url)

    def _enter(self) -> FlyteContext:
        use_own_loop()
        flyte_context_Var.set([self._context])
        return self._context

    def inputs(
        self, name: str, target: Launchable, given: Mapping[str, Any]
    ) -> tuple[literals_pb2.LiteralMap, str, str]:
        """Convert the arguments of a call to the inputs of an execution.

        Local files among the arguments are uploaded.

        Returns:
            The inputs; their digest; and the digest of the inputs without a `TrialHandle`, because the address in a
            handle changes with each process. Else each process has the same digests.
        """
        context = self._enter()
        context = context.with_file_access(cast("FileAccessProvider", Uploads(context.file_access))).build()
        flyte_context_Var.set([context])
        values = {**target.defaults, **given}
        literals = literals_pb2.LiteralMap()
        required = target.required - values.keys()
        if required:
            raise ArgumentError(f"`{name}` needs a value for {', '.join(f'`{each}`' for each in sorted(required))}.")
        for key, value in values.items():
            kind = target.interface.inputs[key].type
            literal = TypeEngine.to_literal(context, value, target.python_interface.inputs[key], kind)
            literals.literals[key].CopyFrom(literal.to_flyte_idl())
        whole = digest(literals, values, context, self._prefix)
        handles = [key for key, value in values.items() if isinstance(value, TrialHandle)]
        if not handles:
            return literals, whole, whole
        stable = literals_pb2.LiteralMap()
        stable.CopyFrom(literals)
        for key in handles:
            del stable.literals[key]
        return literals, whole, digest(stable, values, context, self._prefix)

    def arguments(
        self, target: Launchable, names: Sequence[str], data: WorkflowExecutionGetDataResponse
    ) -> dict[str, Any] | None:
        """Convert some inputs of an execution to Python.

        Returns:
            The values by name; `None` if the response lacks inputs, because they are larger than flyteadmin's
            `maxDownloadMBs`.
        """
        context = self._enter()
        literals = self._whole(context, data.full_inputs, data.inputs).literals
        if not literals.keys() >= set(names):
            return None
        return {
            name: TypeEngine.to_python_value(context, literals[name], target.python_interface.inputs[name])
            for name in names
        }

    def outputs(self, target: Launchable, data: WorkflowExecutionGetDataResponse, uri: Callable[[], str]) -> Any:
        """Convert the outputs of an execution.

        Args:
            uri: Returns the address of the outputs. `uri` is called only if the response lacks the declared outputs.
                flyteadmin leaves out outputs that are larger than its `maxDownloadMBs`.
        """
        context = self._enter()
        blob = data.outputs
        if target.interface.outputs and not data.full_outputs.literals and not blob.bytes:
            blob = UrlBlob(url=uri(), bytes=1)
        literals = self._whole(context, data.full_outputs, blob)
        resolver = LiteralsResolver(literals.literals, target.interface.outputs, context)
        return resolver.as_python_native(target.python_interface)

    @staticmethod
    def _whole(context: FlyteContext, full: literals_pb2.LiteralMap, blob: Any) -> LiteralMap:
        """Return the literals of a response. Literals that the response lacks are downloaded from the blob."""
        if not full.literals and blob.bytes > 0:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "literals.pb")
                context.file_access.get_data(blob.url, path)
                with open(path, "rb") as file:
                    full = literals_pb2.LiteralMap.FromString(file.read())
        whole: LiteralMap = LiteralMap.from_flyte_idl(full)
        return whole
