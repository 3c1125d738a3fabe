"""The way to a cluster from a user's own machine: packages and registers the code, as `pyflyte run --remote` does."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pathlib
import tempfile
import threading
import uuid
from collections.abc import Mapping
from typing import Any, TypedDict

from flytekit import __version__ as flytekit_version
from flytekit.configuration import FastSerializationSettings, ImageConfig, SerializationSettings
from flytekit.constants import CopyFileDetection
from flytekit.core.context_manager import FlyteContext, FlyteContextManager
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.reference_entity import ReferenceEntity
from flytekit.core.tracker import extract_task_module
from flytekit.core.workflow import WorkflowBase
from flytekit.remote import FlyteRemote
from flytekit.remote.remote_callable import RemoteEntity
from flytekit.tools.fast_registration import FastPackageOptions
from flytekit.tools.script_mode import _find_project_root

from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.flyte.admin import Admin, AdminError
from optuna_flyte_dsl.flyte.cluster import Link
from optuna_flyte_dsl.flyte.eager import Home

__all__ = ["Deployment", "DeploymentOptions", "FlyteRemote", "check_options"]


class DeploymentOptions(TypedDict, total=False):
    """How the code of a search gets to a cluster; see `Deployment`."""

    version: str | None
    image_config: ImageConfig | None
    source: str | None
    destination: str
    copy_all: bool


def check_options(options: Mapping[str, Any]) -> None:
    """Check the names of the options of `on`.

    Raises:
        InvalidOptionError: If there is no such option.
    """
    known = DeploymentOptions.__annotations__
    for name in options:
        if name not in known:
            raise InvalidOptionError(
                f"`on` has no option `{name}`; it has {', '.join(f'`{each}`' for each in known)}. Project and domain "
                "are those of the remote; options of the executions are given to `optimize(cluster=Cluster(...))`."
            )


class Deployment:
    """Where a program on this machine sends its trials, and how their code gets there.

    Args:
        remote: The way to the cluster, with the project and domain of all executions.
        version: The version that tasks are registered with; by default a hash of the code.
        image_config: The images of the containers; by default flytekit's.
        source: The folder that is packaged; by default the root of the objective's package.
        destination: Where a pod unpacks it.
        copy_all: Whether all files are packaged, not only the modules that are loaded.

    Raises:
        InvalidOptionError: If `remote` is no FlyteRemote, or has no default project and domain.
    """

    def __init__(
        self,
        remote: FlyteRemote,
        *,
        version: str | None = None,
        image_config: ImageConfig | None = None,
        source: str | None = None,
        destination: str = ".",
        copy_all: bool = False,
    ) -> None:
        if not isinstance(remote, FlyteRemote):
            raise InvalidOptionError(
                f"`on` takes a FlyteRemote, but got {remote!r}. Write `on(FlyteRemote.auto(default_project=..., "
                "default_domain=...))`."
            )
        if not remote.default_project or not remote.default_domain:
            raise InvalidOptionError(
                "`on` takes a FlyteRemote that has a default project and domain. Write "
                "`FlyteRemote(..., default_project=..., default_domain=...)`."
            )
        if version is not None and not isinstance(version, str):
            raise InvalidOptionError(f"`version` must be a string, but got {version!r}.")
        if image_config is not None and not isinstance(image_config, ImageConfig):
            raise InvalidOptionError(
                f"`image_config` must be a flytekit ImageConfig, but got {image_config!r}. Write "
                "`ImageConfig.auto(img_name=...)`."
            )
        if source is not None and not pathlib.Path(source).is_dir():
            raise InvalidOptionError(f"`source` must be a folder, but got {source!r}.")
        self._remote = remote
        self._version = version
        self._image_config = image_config
        self._source = source
        self._destination = destination
        self._style = CopyFileDetection.ALL if copy_all else CopyFileDetection.LOADED_MODULES
        self._lock = threading.Lock()
        self._home: Home | None = None

    def home(self, target: Any, patience: float) -> tuple[Home, FlyteContext]:
        """Return the way to the cluster for an objective; the first call packages and uploads the code.

        Args:
            target: The objective.
            patience: Seconds that an outage is waited out.

        Raises:
            RefusedError: If Flyte refuses the upload.
        """
        with self._lock:
            if self._home is None:
                identity = f"optuna-{uuid.uuid4().hex[:12]}"
                admin = Admin(self._remote, patience)
                try:
                    settings = admin.patiently(functools.partial(self._settings, target), "upload the code")
                except AdminError as error:
                    raise error.refusal("take the code") from error
                labels = {"optuna-flyte-dsl": identity}
                self._home = Home(Link(self._remote, settings, identity, "o", labels))
            return self._home, FlyteContextManager.current_context()

    def _settings(self, target: Any) -> SerializationSettings:
        remote = self._remote
        settings = SerializationSettings(
            image_config=self._image_config or _default_images(),
            project=remote.default_project,
            domain=remote.default_domain,
            version=self._version,
        )
        digest = hashlib.sha256()
        source = self._source or _root_of(target)
        if source is not None and not remote.interactive_mode_enabled:
            with tempfile.TemporaryDirectory() as folder:
                options = FastPackageOptions([], copy_style=self._style)
                md5, location = remote.fast_package(pathlib.Path(source), False, folder, options)
            settings.fast_serialization_settings = FastSerializationSettings(
                enabled=True, destination_dir=self._destination, distribution_location=location
            )
            settings.source_root = source
            digest.update(md5)
        else:
            digest.update(uuid.uuid4().bytes)
        if settings.version is None:
            # The place of the upload is new each time; the code is not.
            digest.update(f"{settings.image_config}{self._destination}{flytekit_version}".encode())
            settings.version = digest.hexdigest()[:32]
        return settings


def _default_images() -> ImageConfig:
    try:
        return ImageConfig.auto_default_image()
    except ValueError as error:  # flytekit publishes none for this Python
        raise InvalidOptionError(
            f"flytekit has no default image for this Python: {error}. Give one, as in "
            '`on(remote, image_config=ImageConfig.auto(img_name="..."))`.'
        ) from error


def _root_of(target: Any) -> str | None:
    """Return the folder that pods need for an objective; `None` if they have its code already."""
    if isinstance(target, ReferenceEntity | RemoteEntity):
        return None
    if isinstance(target, LaunchPlan):
        target = target.workflow
    if isinstance(target, WorkflowBase):
        target = getattr(target, "_workflow_function", target)
    function = getattr(target, "task_function", target)
    path = inspect.getfile(inspect.unwrap(function)) if callable(function) and _has_file(function) else None
    if path is None:
        *_, path = extract_task_module(target)
    return str(_find_project_root(path)) if path else None


def _has_file(function: Any) -> bool:
    try:
        return bool(inspect.getfile(inspect.unwrap(function)))
    except TypeError:
        return False
