"""`Cluster`: the options of executions on a Flyte cluster, each with its type, check, default and documentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from optuna_flyte_dsl import _option_checks as check
from optuna_flyte_dsl._options_base import CheckedOptions
from optuna_flyte_dsl.errors import InvalidOptionError

OnSigterm: TypeAlias = Literal["auto", "terminate", "leave"]


def _must(rule: str, accepts: Callable[[Any], bool]) -> check.Check:
    """Return a check of an option of `Cluster`; its error message names `Cluster`."""
    return lambda name, value: check.must(rule, accepts)(f"{name}` of `Cluster", value)


_COUNT = _must("be an integer above 0", check.is_integer)
_FLAG = _must("be True, False or None", lambda value: value in (None, True, False))
_SECONDS = _must("be a number above 0", lambda value: check.is_seconds(value) and value > 0)
_STRING = _must("be a string or None", lambda value: value is None or isinstance(value, str))
_URL = _must(
    "be an address, such as 'https://flyte.example.com/console', or None",
    lambda value: value is None or (isinstance(value, str) and value.startswith(("http://", "https://"))),
)
_STRINGS = _must(
    "be strings, such as ('nightly',)",
    lambda value: isinstance(value, tuple | list) and all(isinstance(each, str) for each in value),
)
_STRING_MAP = _must("map strings to strings", check.is_string_map)
_PORT = _must("be a port from 0 to 65535", lambda value: check.is_integer(value, 0, 2**16 - 1))
_ON_SIGTERM = _must(
    f"be one of {', '.join(map(repr, get_args(OnSigterm)))}", lambda value: value in get_args(OnSigterm)
)
_SECURITY_CONTEXT = _must(
    "be a flytekit.models.security.SecurityContext, such as "
    "SecurityContext(run_as=Identity(k8s_service_account='name'))",
    lambda value: value is None or hasattr(value, "to_flyte_idl"),
)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Cluster(CheckedOptions):
    """How the trials of a search run on a Flyte cluster. On one machine these options have no effect.

    Raises:
        InvalidOptionError: If an option breaks its rule.

    >>> Cluster(interruptible=True, labels={"team": "vision"}).labels
    {'team': 'vision'}
    """

    _cures: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("cpu", "gpu", "mem", "memory", "requests", "limits", "resources"),
        "Resources belong to the task: `@fl.task(requests=fl.Resources(cpu=..., mem=...))`.",
    )

    launches_per_second: Annotated[float, _SECONDS] = 10.0
    """The largest number of executions launched in a second, after a burst.

    Flyte's control plane starts about 10 executions a second by default.
    """

    launch_burst: Annotated[int, _COUNT] = 50
    """The largest number of executions that are launched at once, before `launches_per_second` holds.

    While `launch_burst` executions are queued in Flyte, no burst is allowed.
    """

    launches_at_once: Annotated[int, _COUNT] = 16
    """The largest number of launches, and of reads of outputs, that go on at the same time."""

    patience: Annotated[float, _SECONDS] = 600.0
    """The seconds for which an outage of flyteadmin is waited out."""

    on_sigterm: Annotated[OnSigterm, _ON_SIGTERM] = "auto"
    """What happens to running executions when the pod of the eager workflow gets SIGTERM. "terminate" terminates them.
    "leave" leaves them running, so that the pod's next attempt can adopt them. "auto" leaves them running if the study
    outlives the pod and Flyte will start the pod again: the eager workflow's execution is not being
    aborted, and this is not the pod's fourth system failure. Otherwise "auto" terminates them. If the study does not
    outlive the pod, executions are always terminated."""

    grace: Annotated[float, _SECONDS] = 20.0
    """The seconds after SIGTERM within which the search ends.

    The grace must be less than the pod's grace period, which is 30 seconds by default in Kubernetes.
    """

    interruptible: Annotated[bool | None, _FLAG] = None
    """Whether executions may run on machines that can be taken away, such as spot instances.

    With `None`, that of the eager workflow's execution holds, or else the task's own.
    """

    overwrite_cache: Annotated[bool | None, _FLAG] = None
    """Whether cached outputs are computed anew. With `None`, that of the eager workflow's execution holds."""

    labels: Annotated[Mapping[str, str], _STRING_MAP] = field(default_factory=dict)
    """Kubernetes labels of the executions, besides those that flytekit sets."""

    annotations: Annotated[Mapping[str, str], _STRING_MAP] = field(default_factory=dict)
    """Kubernetes annotations of the executions."""

    env: Annotated[Mapping[str, str], _STRING_MAP] = field(default_factory=dict)
    """Environment variables of the executions, besides those that flytekit sets."""

    tags: Annotated[tuple[str, ...], _STRINGS] = ()
    """Tags of the executions."""

    cluster_pool: Annotated[str | None, _STRING] = None
    """The pool of clusters on which the executions run."""

    execution_cluster_label: Annotated[str | None, _STRING] = None
    """The label of the clusters on which the executions run."""

    raw_output_prefix: Annotated[str | None, _STRING] = None
    """The prefix under which files and other large outputs are stored, such as "s3://bucket/folder"."""

    security_context: Annotated[Any, _SECURITY_CONTEXT] = None
    """A `flytekit.models.security.SecurityContext`.

    A SecurityContext can name the service account of the executions' pods.
    """

    trials_host: Annotated[str | None, _STRING] = None
    """The address at which pods reach the searching process, if a task takes `trial: optuna.Trial`. By default the
    address from which the searching process reaches Flyte. The connection is encrypted if there is a
    `trials_certificate`."""

    trials_port: Annotated[int, _PORT] = 0
    """The port at `trials_host`; 0 for any free port."""

    trials_certificate: Annotated[str | None, _STRING] = None
    """The file of a certificate for `trials_host`, with its chain, in PEM format.

    Only the searching process reads the file, and sends the certificate to the pods, which trust this certificate
    alone. `trials_certificate` needs `trials_key`.
    """

    trials_key: Annotated[str | None, _STRING] = None
    """The file of the certificate's private key, in PEM format. The private key stays in the searching process."""

    trials_certificate_name: Annotated[str | None, _STRING] = None
    """The name for which the certificate is valid, if it is not `trials_host`."""

    trials_token_env: Annotated[str | None, _STRING] = None
    """The environment variable of the secret from which tokens are made, in the searching process and in the pods.

    By default the search sets the token of each trial in the trial's execution, as `OPTUNA_FLYTE_DSL_TOKEN`: everyone
    who may read an execution's specification can read its token.
    """

    trials_storage_env: Annotated[str | None, _STRING] = None
    """The environment variable, in the pods, that holds the URL of the study's storage. Pods then open the storage
    themselves, and do not connect to the searching process."""

    max_parallelism: Annotated[int | None, check.optional(_COUNT)] = None
    """The largest number of nodes of one execution that run at the same time."""

    console_url: Annotated[str | None, _URL] = None
    """The address of Flyte's console, for links to executions, such as "https://flyte.example.com/console".

    By default, links begin with the console's address that Flyte gives to the pod, if its operator has set it; else
    with the address of flyteadmin.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.trials_certificate is None) != (self.trials_key is None):
            given, missing = ("trials_certificate", "trials_key")[:: 1 if self.trials_key is None else -1]
            raise InvalidOptionError(
                f"`{given}` of `Cluster` needs `{missing}` too: a certificate and its private key, each in a file. "
                f"Write `Cluster({given}=..., {missing}=...)`."
            )
        if self.trials_certificate_name is not None and self.trials_certificate is None:
            raise InvalidOptionError(
                "`trials_certificate_name` of `Cluster` needs `trials_certificate`: it is a name in the certificate. "
                "Write `Cluster(trials_certificate=..., trials_key=..., trials_certificate_name=...)`."
            )
