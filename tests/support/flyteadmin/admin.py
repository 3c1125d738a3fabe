"""The control plane: flyteidl's real services on a free loopback port."""

import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.server
import pathlib
import threading
import time
import uuid

import grpc
from flyteidl.admin import (
    common_pb2,
    execution_pb2,
    launch_plan_pb2,
    node_execution_pb2,
    project_pb2,
    task_execution_pb2,
    task_pb2,
    version_pb2,
    workflow_pb2,
)
from flyteidl.core import compiler_pb2, identifier_pb2, interface_pb2, literals_pb2
from flyteidl.service import (
    admin_pb2_grpc,
    auth_pb2,
    auth_pb2_grpc,
    dataproxy_pb2,
    dataproxy_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
)

from tests.support.flyteadmin import filters
from tests.support.flyteadmin.errors import Refused, check_name, invalid, missing
from tests.support.flyteadmin.executions import PHASES, TERMINAL, Execution, Failed, Succeeded
from tests.support.flyteadmin.literals import check_inputs
from tests.support.flyteadmin.nodes import (
    NODE,
    STARTS_AND_ENDS,
    TASK,
    NodeRecord,
    inner_nodes,
    node_messages,
    single_task_node,
    task_messages,
    task_of,
    unique_id,
)
from tests.support.flyteadmin.propeller import Propeller

TRIMMED = 100
INLINE_BYTES = 10 * 2**20


@dataclasses.dataclass
class Fault:
    """What an RPC answers instead of its answer, `times` times.

    Args:
        code: The status.
        times: How many calls.
        done: Whether the server does what was asked for, and only the answer is lost.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    times: int = 1
    done: bool = False


class FlyteAdmin:
    """A Flyte cluster on this machine.

    Args:
        folder: Where inputs, outputs and uploads are kept, as files.
        instant: Makes the outcome of an execution; without it, executions run as processes.
        latency: Seconds that each RPC takes.
        python_path: Folders with the modules that the image of each container has.
        environment: Variables that each process gets.
        system_failures: The number of failures of the system's, as of a pod that is killed, that are retried.
        abort_seconds: How long a terminated execution is ABORTING, before its pods hear of it.
        has_login: Whether there are services for logging in, as where flyteadmin asks for credentials.
    """

    def __init__(
        self,
        folder,
        *,
        instant=None,
        latency=0.0,
        python_path=(),
        environment=None,
        system_failures=3,
        abort_seconds=0.3,
        has_login=False,
        workers=64,
    ):
        self.folder = pathlib.Path(folder)
        self.instant = instant
        self.latency = latency
        self.counts = collections.Counter()
        self.faulty: str | None = None  # the RPC at which the fault of `fault_at` came
        self._fault_at = (0, "")
        self.peers: set[str] = set()  # the addresses of the clients' connections
        self.faults = collections.defaultdict(list)
        self.executions: dict[tuple[str, str, str], Execution] = {}
        self.children: dict[tuple[str, str, str], Execution] = {}  # executions that nodes of launch plans have made
        self.tasks: dict[tuple, task_pb2.TaskSpec] = {}
        self.workflows: dict[tuple, workflow_pb2.WorkflowSpec] = {}
        self.launch_plans: dict[tuple, launch_plan_pb2.LaunchPlanSpec] = {}
        self.times: list[tuple[str, float]] = []
        self.stored_inputs: dict[tuple[str, str, str], literals_pb2.LiteralMap] = {}
        self.overwritten: list[str] = []  # names in use for which another creation was asked: its inputs are stored
        self.single_task_races = 1  # for each version of a task
        self._races = collections.Counter()
        self.stale_reads = 0  # how often GetExecution shows an execution as running after its end, as a replica may
        self.reads = collections.Counter()  # by execution
        self.max_download = 2 * 2**20  # bytes of outputs that GetExecutionData reads
        self.lock = threading.RLock()
        self.port = 0
        self.propeller = Propeller(self, python_path, dict(environment or {}), system_failures)
        self.abort_seconds = abort_seconds
        self._has_login = has_login
        self._workers = workers
        self._server = None
        self._is_stopped = threading.Event()
        self._uploads = None

    # Life

    def start(self):
        server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(self._workers, thread_name_prefix="flyteadmin"),
            interceptors=[_Gate(self)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 20 * 2**20),
                # As gRPC-Go by default: the third ping that comes too early on an idle connection closes it.
                ("grpc.http2.max_ping_strikes", 2),
                ("grpc.http2.min_ping_interval_without_data_ms", 300_000),
            ],
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(_Admin(self), server)
        dataproxy_pb2_grpc.add_DataProxyServiceServicer_to_server(_DataProxy(self), server)
        if self._has_login:
            auth_pb2_grpc.add_AuthMetadataServiceServicer_to_server(_Auth(), server)
            identity_pb2_grpc.add_IdentityServiceServicer_to_server(_Identity(), server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert self.port, "the port is taken"
        self._is_stopped.clear()
        server.start()
        self._server = server
        if self._uploads is None:
            self._uploads = _Uploads(self.folder / "uploads")
        return self

    def stop(self):
        """Stop answering, as a flyteadmin that is restarted; executions go on."""
        self._is_stopped.set()
        self._server.stop(grace=None).wait()
        self._server = None

    def close(self):
        if self._server is not None:
            self.stop()
        if self._uploads is not None:
            self._uploads.close()
        self.propeller.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.port}"

    @property
    def client_environment(self):
        """What a client's environment needs to reach this cluster."""
        return {"FLYTE_PLATFORM_URL": self.endpoint, "FLYTE_PLATFORM_INSECURE": "true"}

    def remote(self, project="project", domain="development", **options):
        from flytekit.configuration import Config, PlatformConfig
        from flytekit.remote import FlyteRemote

        config = Config(platform=PlatformConfig(endpoint=self.endpoint, insecure=True))
        options.setdefault("data_upload_location", str(self.folder / "raw" / "client"))
        return FlyteRemote(config, default_project=project, default_domain=domain, **options)

    def fail(self, rpc, *faults):
        """Let the next calls of an RPC fail."""
        with self.lock:
            self.faults[rpc].extend(faults)

    def fault_at(self, step, how):
        """Lose one request, counted from 1 over all RPCs, or its answer, or handle it twice.

        Args:
            how: "request", "answer" or "doubled".
        """
        self._fault_at, self.faulty = (step, how), None

    # Entities

    def launch(self, request: execution_pb2.ExecutionCreateRequest):
        name = request.name or f"a{uuid.uuid4().hex[:19]}"
        check_name(name)
        if not request.project or not request.domain:
            raise invalid("missing project or domain")
        given = request.inputs if request.HasField("inputs") else request.spec.inputs
        reference = request.spec.launch_plan
        if reference.resource_type == identifier_pb2.TASK:
            task = self.find(self.tasks, "task", reference)
            inputs = check_inputs(given, task.template.interface.inputs.variables, {})
        elif reference.resource_type == identifier_pb2.LAUNCH_PLAN:
            plan = self.find(self.launch_plans, "launch plan", reference)
            workflow = self.find(self.workflows, "workflow", plan.workflow_id)
            inputs = check_inputs(given, workflow.template.interface.inputs.variables, defaults_of(plan))
        else:
            raise invalid(f"Invalid reference entity resource type {reference.resource_type}")
        execution = Execution(request.project, request.domain, name, request.spec, inputs, time.time())
        with self.lock:
            # The inputs of a name are stored before its row in the database is.
            self.stored_inputs[execution.key] = inputs
            version = (reference.project, reference.domain, reference.name, reference.version)
            if reference.resource_type == identifier_pb2.TASK and self._races[version] < self.single_task_races:
                # The first executions of a task race in making the workflow around it.
                self._races[version] += 1
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, "workflow with identical structure already exists")
            if execution.key in self.executions:
                self.overwritten.append(name)
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"entity execution already exists {execution.key}")
            parent = request.spec.metadata.parent_node_execution
            if parent.node_id and not self._has_node(parent):
                raise missing("node execution", parent)
            if reference.resource_type == identifier_pb2.LAUNCH_PLAN and plan.HasField("concurrency_policy"):
                self._refuse_too_many(reference, plan.concurrency_policy.max)
            self.executions[execution.key] = execution
        if self.instant is not None:
            outcome = self.instant(execution)
            if outcome is not None:
                with execution.lock:
                    execution.outcome = outcome
                    execution.ends = time.monotonic() + outcome.seconds
                    execution.phase = PHASES.RUNNING
                    self._add_nodes(execution)
        else:
            self.propeller.start(execution)
        return execution

    def _refuse_too_many(self, plan, limit):
        """Refuse an execution if so many of all versions of its launch plan have not ended."""
        of_plan = [execution for execution in self.running() if execution.spec.launch_plan.name == plan.name]
        if len(of_plan) >= limit:
            self.counts["too many of a launch plan"] += 1
            said = f"concurrency limit ({limit}) reached for launch plan {plan.name}; skipping execution"
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, said)

    def _has_node(self, node):
        key = (node.execution_id.project, node.execution_id.domain, node.execution_id.name)
        parent = self.executions.get(key) or self.children.get(key)
        return parent is not None and node.node_id in parent.nodes

    def _add_nodes(self, execution):
        """Make the nodes of an execution that runs no processes."""
        reference = execution.spec.launch_plan
        if reference.resource_type == identifier_pb2.TASK:
            node = single_task_node(reference.name)
            node.task_node.reference_id.CopyFrom(reference)
            self._add_node(execution, None, node, "")
        else:
            plan = self.find(self.launch_plans, "launch plan", reference)
            spec = self.find(self.workflows, "workflow", plan.workflow_id)
            for node in spec.template.nodes:
                if node.id not in STARTS_AND_ENDS:
                    self._add_node(execution, spec, node, "")

    def _add_node(self, execution, spec, node, parent):
        name = unique_id(parent, node.id)
        folder = self.folder / "executions" / execution.name / name / "data"
        record = execution.nodes[name] = NodeRecord(name, folder, parent)
        record.task = task_of(node)
        record.tasks = [TASK.QUEUED] if record.task is not None else []
        for inner in inner_nodes(spec, node):
            self._add_node(execution, spec, inner, name)
        if node.WhichOneof("target") == "workflow_node" and node.workflow_node.launchplan_ref.name:
            # Propeller launches another execution, under a name of its own.
            record.child = f"f{uuid.uuid4().hex[:19]}"
            child_spec = execution_pb2.ExecutionSpec(launch_plan=node.workflow_node.launchplan_ref)
            child = dataclasses.replace(execution, name=record.child, spec=child_spec, nodes={}, lock=threading.RLock())
            self.children[child.key] = child
            self._add_nodes(child)

    def refresh_nodes(self, execution):
        """Let the nodes of an execution that runs no processes go on as its outcome says."""
        if execution.ends is None:
            return
        with execution.lock:
            for record in execution.nodes.values():
                record.phase = NODE.RUNNING if execution.running else NODE.SUCCEEDED
                if record.tasks:
                    latest = TASK.QUEUED if execution.in_queue else TASK.RUNNING
                    record.tasks = [TASK.FAILED, latest] if execution.is_second_attempt else [latest]

    def find(self, table, kind, identifier):
        key = key_of(identifier)
        with self.lock:
            if key not in table:
                raise missing(kind, key)
            return table[key]

    def running(self):
        """Return the executions that have not ended, and were not told to end."""
        with self.lock:
            executions = list(self.executions.values())
        return [execution for execution in executions if execution.running and execution.phase != PHASES.ABORTING]


def key_of(identifier):
    return identifier.project, identifier.domain, identifier.name, identifier.version


def defaults_of(plan):
    """Return what a launch plan gives its workflow besides the call's inputs: defaults and fixed ones."""
    given = {
        name: parameter.default
        for name, parameter in plan.default_inputs.parameters.items()
        if parameter.WhichOneof("behavior") == "default"
    }
    return given | dict(plan.fixed_inputs.literals)


class _Gate(grpc.ServerInterceptor):
    """Counts each RPC, makes it slow, lets it fail."""

    def __init__(self, admin):
        self._admin = admin

    def _fault_of(self, rpc):
        """Return the fault of `fault_at` if this is its request, and whether the request is to be handled twice."""
        admin = self._admin
        step, how = admin._fault_at
        if sum(admin.counts.values()) != step:
            return None, False
        admin.faulty = rpc
        return (None, True) if how == "doubled" else (Fault(done=how == "answer"), False)

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        rpc = details.method.rsplit("/", 1)[-1]
        admin = self._admin

        def behave(request, context):
            with admin.lock:
                admin.counts[rpc] += 1
                admin.peers.add(context.peer())
                admin.times.append((rpc, time.monotonic()))
                fault, is_doubled = self._fault_of(rpc)
                waiting = admin.faults.get(rpc) or admin.faults.get("*")
                if fault is None and waiting:
                    fault = waiting[0]
                    fault.times -= 1
                    if fault.times <= 0:
                        waiting.pop(0)
            if admin.latency and admin._is_stopped.wait(admin.latency):
                context.abort(grpc.StatusCode.UNAVAILABLE, "flyteadmin is stopped")
            if fault is not None and not fault.done:
                context.abort(fault.code, "a fault of the test")
            try:
                answer = handler.unary_unary(request, context)
                if is_doubled:
                    answer = handler.unary_unary(request, context)
            except Refused as refused:
                context.abort(refused.code, str(refused))
            if fault is not None:
                context.abort(fault.code, "a fault of the test, after all was done")
            return answer

        return grpc.unary_unary_rpc_method_handler(behave, handler.request_deserializer, handler.response_serializer)


def _all_nodes(template):
    """Return the nodes of a workflow, with the one that runs when the workflow fails."""
    return [*template.nodes, *([template.failure_node] if template.HasField("failure_node") else [])]


def _tasks_of(node):
    """Yield the tasks that a node may run, in its branches too."""
    match node.WhichOneof("target"):
        case "task_node":
            yield node.task_node.reference_id
        case "array_node":
            yield from _tasks_of(node.array_node.node)
        case "branch_node":
            choice = node.branch_node.if_else
            for block in (choice.case, *choice.other):
                yield from _tasks_of(block.then_node)
            yield from _tasks_of(choice.else_node)


class _Admin(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, admin: FlyteAdmin):
        self._admin = admin

    def GetVersion(self, request, context):
        return version_pb2.GetVersionResponse(control_plane_version=version_pb2.Version(Version="stand-in"))

    def ListProjects(self, request, context):
        return project_pb2.Projects(projects=[project_pb2.Project(id="project", name="project")])

    def _create(self, table, kind, identifier, spec):
        for field in ("project", "domain", "name", "version"):
            if not getattr(identifier, field):
                raise invalid(f"missing {field}")
        with self._admin.lock:
            there = table.get(key_of(identifier))
            if there is not None and there.SerializeToString(deterministic=True) != spec.SerializeToString(
                deterministic=True
            ):
                raise invalid(f"{identifier.name} {kind} with different structure already exists.")
            if there is not None:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{kind} with identical structure already exists")
            spec_copy = type(spec)()
            spec_copy.CopyFrom(spec)
            table[key_of(identifier)] = spec_copy

    def CreateTask(self, request, context):
        self._create(self._admin.tasks, "task", request.id, request.spec)
        return task_pb2.TaskCreateResponse()

    def GetTask(self, request, context):
        spec = self._admin.find(self._admin.tasks, "task", request.id)
        compiled = compiler_pb2.CompiledTask(template=spec.template)
        return task_pb2.Task(id=request.id, closure=task_pb2.TaskClosure(compiled_task=compiled))

    def ListTasks(self, request, context):
        with self._admin.lock:
            found = [(key, spec) for key, spec in self._admin.tasks.items() if key[2] == request.id.name]
        tasks = [
            task_pb2.Task(
                id=spec.template.id,
                closure=task_pb2.TaskClosure(compiled_task=compiler_pb2.CompiledTask(template=spec.template)),
            )
            for _, spec in reversed(found)
        ]
        return task_pb2.TaskList(tasks=tasks[: request.limit])

    def CreateWorkflow(self, request, context):
        self._compile(request.spec)  # each task must be registered before the workflow
        self._create(self._admin.workflows, "workflow", request.id, request.spec)
        return workflow_pb2.WorkflowCreateResponse()

    def GetWorkflow(self, request, context):
        spec = self._admin.find(self._admin.workflows, "workflow", request.id)
        return workflow_pb2.Workflow(
            id=request.id, closure=workflow_pb2.WorkflowClosure(compiled_workflow=self._compile(spec))
        )

    def _compile(self, spec):
        closure = compiler_pb2.CompiledWorkflowClosure(
            primary=compiler_pb2.CompiledWorkflow(template=spec.template),
            sub_workflows=[compiler_pb2.CompiledWorkflow(template=sub) for sub in spec.sub_workflows],
        )
        seen = set()
        for template in (spec.template, *spec.sub_workflows):
            for reference in (each for node in _all_nodes(template) for each in _tasks_of(node)):
                if key_of(reference) not in seen:
                    seen.add(key_of(reference))
                    task = self._admin.find(self._admin.tasks, "task", reference)
                    closure.tasks.append(compiler_pb2.CompiledTask(template=task.template))
        return closure

    def CreateLaunchPlan(self, request, context):
        self._admin.find(self._admin.workflows, "workflow", request.spec.workflow_id)
        self._create(self._admin.launch_plans, "launch plan", request.id, request.spec)
        return launch_plan_pb2.LaunchPlanCreateResponse()

    def UpdateLaunchPlan(self, request, context):
        return launch_plan_pb2.LaunchPlanUpdateResponse()

    def GetLaunchPlan(self, request, context):
        plan = self._admin.find(self._admin.launch_plans, "launch plan", request.id)
        workflow = self._admin.find(self._admin.workflows, "workflow", plan.workflow_id).template.interface
        expected = interface_pb2.ParameterMap()
        for name, variable in workflow.inputs.variables.items():
            if name in plan.fixed_inputs.literals:
                continue
            expected.parameters[name].var.CopyFrom(variable)
            if name in plan.default_inputs.parameters:
                expected.parameters[name].CopyFrom(plan.default_inputs.parameters[name])
            else:
                expected.parameters[name].required = True
        return launch_plan_pb2.LaunchPlan(
            id=request.id,
            spec=plan,
            closure=launch_plan_pb2.LaunchPlanClosure(expected_inputs=expected, expected_outputs=workflow.outputs),
        )

    def CreateExecution(self, request, context):
        execution = self._admin.launch(request)
        return execution_pb2.ExecutionCreateResponse(id=identifier(execution))

    def GetExecution(self, request, context):
        execution = self._find(request.id)
        answer = describe(execution)
        if not execution.running and self._admin.reads[execution.key] < self._admin.stale_reads:
            self._admin.reads[execution.key] += 1
            answer.closure.phase = PHASES.RUNNING
            answer.closure.ClearField("output_result")
        return answer

    def GetExecutionData(self, request, context):
        execution = self._find(request.id)
        answer = execution_pb2.WorkflowExecutionGetDataResponse()
        outputs = (
            execution.outcome.outputs if isinstance(execution.outcome, Succeeded) and not execution.running else None
        )
        for literals, full, blob in (
            (self._admin.stored_inputs[execution.key], answer.full_inputs, answer.inputs),
            (outputs, answer.full_outputs, answer.outputs),
        ):
            if literals is None:
                continue
            if literals.ByteSize() <= INLINE_BYTES:
                full.CopyFrom(literals)
            data = literals.SerializeToString()
            path = self._admin.folder / "data" / hashlib.sha256(data).hexdigest()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if full is answer.full_outputs:
                execution.outputs_uri = str(path)
                if len(data) > self._admin.max_download:  # it says nothing at all about them
                    full.Clear()
                    continue
            blob.CopyFrom(common_pb2.UrlBlob(url=str(path), bytes=len(data)))
        return answer

    def ListExecutions(self, request, context):
        with self._admin.lock:
            executions = [
                execution
                for execution in self._admin.executions.values()
                if (execution.project, execution.domain) == (request.id.project, request.id.domain)
            ]
        rows = []
        for execution in executions:
            execution.refresh()
            # Labels are searchable for launch plans only: flyteadmin makes no tags for a task that is launched alone.
            has_tags = execution.spec.launch_plan.resource_type == identifier_pb2.LAUNCH_PLAN
            labels = dict(execution.spec.labels.values) if has_tags else {}
            tags = dict.fromkeys(execution.spec.tags, "") if has_tags else {}
            rows.append(
                (
                    {
                        "execution_name": execution.name,
                        "execution_project": execution.project,
                        "execution_domain": execution.domain,
                        "phase": PHASES.Phase.Name(execution.phase),
                        "created_at": execution.created,
                        "updated_at": execution.ended or execution.created,
                        "execution_tag.key": {*labels, *tags},
                        "execution_tag.value": {*labels.values(), *tags.values()},
                    },
                    execution,
                )
            )
        page, token = filters.select(rows, request)
        return execution_pb2.ExecutionList(executions=[describe(each, trim=True) for each in page], token=token)

    def ListNodeExecutions(self, request, context):
        if not request.limit:
            raise invalid("limit must be given")
        found = self._find(request.workflow_execution_id)
        parent = request.unique_parent_id
        if parent and parent not in found.nodes:
            raise missing("node execution", parent)
        self._admin.refresh_nodes(found)
        nodes = node_messages(found, parent, identifier(found))
        page, token = page_of(nodes, request)
        return node_execution_pb2.NodeExecutionList(node_executions=page, token=token)

    def ListTaskExecutions(self, request, context):
        if not request.limit:
            raise invalid("limit must be given")
        node = request.node_execution_id
        found = self._find(node.execution_id)
        if node.node_id in STARTS_AND_ENDS:
            return task_execution_pb2.TaskExecutionList()
        if node.node_id not in found.nodes:
            raise missing("node execution", node.node_id)
        self._admin.refresh_nodes(found)
        page, token = page_of(task_messages(found, node), request)
        return task_execution_pb2.TaskExecutionList(task_executions=page, token=token)

    def TerminateExecution(self, request, context):
        execution = self._find(request.id)
        if not execution.terminate(request.cause, self._admin.abort_seconds):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "Cannot abort an already terminate workflow execution")
        return execution_pb2.ExecutionTerminateResponse()

    def _find(self, wanted) -> Execution:
        with self._admin.lock:
            key = (wanted.project, wanted.domain, wanted.name)
            execution = self._admin.executions.get(key) or self._admin.children.get(key)
        if execution is None:
            raise missing("execution", wanted.name)
        execution.refresh()
        return execution


def page_of(rows, request):
    """Return a page of rows, and the token of the next one: an offset, given where the page is full."""
    begin = int(request.token or 0)
    page = rows[begin : begin + request.limit]
    return page, str(begin + len(page)) if len(page) == request.limit else ""


def identifier(execution):
    return identifier_pb2.WorkflowExecutionIdentifier(
        project=execution.project, domain=execution.domain, name=execution.name
    )


def describe(execution, *, trim=False):
    answer = execution_pb2.Execution(id=identifier(execution), spec=execution.spec)
    closure = answer.closure
    with execution.lock:
        closure.phase = execution.phase
        outcome = execution.outcome if execution.phase in TERMINAL else None
        closure.created_at.FromNanoseconds(int(execution.created * 1e9))
        closure.updated_at.FromNanoseconds(int((execution.ended or execution.created) * 1e9))
        if execution.phase in (PHASES.ABORTED, PHASES.ABORTING):
            closure.abort_metadata.cause = execution.abort_cause
        elif isinstance(outcome, Succeeded):
            closure.outputs.uri = execution.outputs_uri
        elif isinstance(outcome, Failed):
            closure.error.code = outcome.code
            closure.error.kind = outcome.kind
            closure.error.message = outcome.message[:TRIMMED] if trim else outcome.message
    return answer


class _Auth(auth_pb2_grpc.AuthMetadataServiceServicer):
    def GetOAuth2Metadata(self, request, context):
        return auth_pb2.OAuth2MetadataResponse(issuer="stand-in")

    def GetPublicClientConfig(self, request, context):
        return auth_pb2.PublicClientAuthConfigResponse(client_id="stand-in")


class _Identity(identity_pb2_grpc.IdentityServiceServicer):
    def UserInfo(self, request, context):
        return identity_pb2.UserInfoResponse(subject="tester")


class _DataProxy(dataproxy_pb2_grpc.DataProxyServiceServicer):
    def __init__(self, admin):
        self._admin = admin

    def CreateUploadLocation(self, request, context):
        if not request.project or not request.domain:
            raise invalid("project and domain are required")
        root = request.filename_root or base64.b32encode(request.content_md5).decode()
        return self._admin._uploads.location(f"{request.project}/{request.domain}/{root}/{request.filename or 'data'}")


class _Uploads:
    """What a bucket does: signed URLs over HTTP."""

    def __init__(self, folder):
        self._folder = folder
        uploads = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                path = uploads._folder / self.path.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="uploads", daemon=True)
        self._thread.start()

    def location(self, name):
        return dataproxy_pb2.CreateUploadLocationResponse(
            signed_url=f"http://127.0.0.1:{self._server.server_address[1]}/{name}",
            native_url=str(self._folder / name),
        )

    def close(self):
        with contextlib.suppress(Exception):
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
