"""Searches on a laptop with trials on a cluster: the code is packaged and uploaded as by `pyflyte run --remote`."""

import functools
import hashlib
import inspect
import pathlib
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

from flytekit import __version__ as flytekit_version
from flytekit.configuration import FastSerializationSettings, ImageConfig, SerializationSettings
from flytekit.constants import CopyFileDetection
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.reference_entity import ReferenceEntity
from flytekit.core.tracker import extract_task_module
from flytekit.core.workflow import WorkflowBase
from flytekit.remote import FlyteRemote
from flytekit.remote.remote_callable import RemoteEntity
from flytekit.tools.fast_registration import FastPackageOptions

from optuna_flyte_dsl._compat.flytekit import project_root, workflow_function
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_site import ClusterSite
from optuna_flyte_dsl.engines._flytekit.cluster.laptop_sigterm import laptop_sigterm
from optuna_flyte_dsl.errors import InvalidOptionError


@dataclass(eq=False)
class LaptopDeployment:
    """Deploys the code of a search from this machine; see `Deployment`, and `Optimized.on` for the options."""

    remote: FlyteRemote
    version: str | None = None
    image_config: ImageConfig | None = None
    source: str | None = None
    destination: str = "."
    copy_all: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _site: ClusterSite | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        laptop_sigterm.install()  # here, because a search may run in another thread than the main thread
        remote, version, image_config, source = self.remote, self.version, self.image_config, self.source
        if not isinstance(remote, FlyteRemote):
            raise InvalidOptionError(
                f"`on` takes a FlyteRemote, but got {shown(remote)}. Write `on(FlyteRemote.auto(default_project=..., "
                "default_domain=...))`."
            )
        if not remote.default_project or not remote.default_domain:
            raise InvalidOptionError(
                "`on` takes a FlyteRemote that has a default project and domain. Write "
                "`FlyteRemote(..., default_project=..., default_domain=...)`."
            )
        if version is not None and not isinstance(version, str):
            raise InvalidOptionError(f"`version` must be a string, but got {shown(version)}.")
        if image_config is not None and not isinstance(image_config, ImageConfig):
            raise InvalidOptionError(
                f"`image_config` must be a flytekit ImageConfig, but got {shown(image_config)}. Write "
                "`ImageConfig.auto(img_name=...)`."
            )
        if source is not None and not pathlib.Path(source).is_dir():
            raise InvalidOptionError(f"`source` must be a folder, but got {shown(source)}.")

    def site(self, target: Any, patience: float) -> ClusterSite:
        """Return the site of the objective's searches. The call blocks.

        The first call of this method packages and uploads the code. Later calls return the same site.
        """
        with self._lock:
            if self._site is None:
                identity = f"optuna-{uuid.uuid4().hex[:12]}"
                admin = Admin(self.remote, patience)
                try:
                    settings = admin.retry(functools.partial(self._settings, target), "upload the code")
                except AdminError as error:
                    raise error.refusal("take the code") from error
                labels = {"optuna-flyte-dsl": identity}
                self._site = ClusterSite(Connection(self.remote, settings, identity, "o", labels))
            return self._site

    def _settings(self, target: Any) -> SerializationSettings:
        remote = self.remote
        try:
            images = self.image_config or ImageConfig.auto_default_image()
        except ValueError as error:  # flytekit publishes no image for this Python
            raise InvalidOptionError(
                f"flytekit has no default image for this Python: {error}. Give one, as in "
                '`on(remote, image_config=ImageConfig.auto(img_name="..."))`.'
            ) from error
        settings = SerializationSettings(
            image_config=images, project=remote.default_project, domain=remote.default_domain, version=self.version
        )
        digest = hashlib.sha256()
        source = self.source or _root_of(target)
        if source is not None and not remote.interactive_mode_enabled:
            with tempfile.TemporaryDirectory() as folder:
                style = CopyFileDetection.ALL if self.copy_all else CopyFileDetection.LOADED_MODULES
                options = FastPackageOptions([], copy_style=style)
                md5, location = remote.fast_package(pathlib.Path(source), False, folder, options)
            settings.fast_serialization_settings = FastSerializationSettings(
                enabled=True, destination_dir=self.destination, distribution_location=location
            )
            settings.source_root = source
            digest.update(md5)
        else:
            digest.update(uuid.uuid4().bytes)
        if settings.version is None:
            # The address of the upload is not hashed: it is new each time, even for the same code.
            digest.update(f"{settings.image_config}{self.destination}{flytekit_version}".encode())
            settings.version = digest.hexdigest()[:32]
        return settings


def _root_of(target: Any) -> str | None:
    """Return the folder with the code of an objective; `None` if pods have the code already."""
    if isinstance(target, ReferenceEntity | RemoteEntity):
        return None
    if isinstance(target, LaunchPlan):
        target = target.workflow
    if isinstance(target, WorkflowBase):
        target = workflow_function(target)
    try:
        path = inspect.getfile(inspect.unwrap(getattr(target, "task_function", target)))
    except TypeError:  # the target is not a Python function, so it has no file
        *_, path = extract_task_module(target)
    return project_root(path) if path else None
