"""Runs executions as propeller does: each attempt of a task is a process with its container's arguments."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

from flyteidl.core import dynamic_job_pb2, errors_pb2, execution_pb2, identifier_pb2, literals_pb2, workflow_pb2

from tests.support import scripts
from tests.support.flyteadmin.branches import chosen
from tests.support.flyteadmin.executions import PHASES, Failed, Succeeded
from tests.support.flyteadmin.literals import as_text, from_text, resolve
from tests.support.flyteadmin.nodes import NODE, TASK, NodeRecord, single_task_node, task_of, unique_id

IMAGE = pathlib.Path(__file__).parents[1] / "image"  # what the image of each pod has
SCRIPTS = pathlib.Path(sys.executable).parent


class _Error(Exception):
    def __init__(self, failed: Failed):
        super().__init__(failed.message)
        self.failed = failed


def _failed(code, message, kind=execution_pb2.ExecutionError.USER):
    return _Error(Failed(code=code, message=message, kind=kind))


class _Job:
    """What a dynamic task has made, with the fields of a workflow's specification."""

    def __init__(self, job):
        self.tasks, self.sub_workflows = job.tasks, job.subworkflows


class Propeller:
    """Runs executions in threads of its own.

    Args:
        admin: The control plane.
        python_path: Folders with the modules that the image of each container has.
        environment: Variables that each process gets.
        system_failures: The number of failures of the system's, as of a pod that is killed, that are retried.
    """

    def __init__(self, admin, python_path, environment, system_failures):
        self.attempts: dict[str, list[float]] = {}  # by execution and node, when each attempt was started
        self.interruptible: dict[str, bool] = {}  # by execution and node, where it was to run
        self.grace = 10.0  # seconds that a pod lives after SIGTERM
        self._admin = admin
        self._python_path = [str(path) for path in (*python_path, IMAGE)]
        self._environment = environment
        self.system_failures = system_failures
        self._processes: dict[tuple, dict] = {}
        self._drained: dict[tuple, threading.Event] = {}
        self._lock = threading.Lock()
        self._threads = []
        self._closed = False

    def start(self, execution):
        execution.abort = lambda: self._signal(execution, signal.SIGTERM)
        thread = threading.Thread(target=self._run, args=(execution,), name=f"propeller-{execution.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def processes(self, execution):
        """Return the running processes of an execution."""
        with self._lock:
            return list(self._processes.get(execution.key, {}).values())

    def drain(self, execution):
        """Take the machines of an execution's pods away: the next attempts start while the pods still end."""
        with self._lock:
            drained = self._drained.setdefault(execution.key, threading.Event())
        drained.set()

    def close(self):
        self._closed = True
        with self._lock:
            processes = [process for each in self._processes.values() for process in each.values()]
        for process in processes:
            _kill(process, signal.SIGKILL)
        for thread in self._threads:
            thread.join(timeout=30)

    def _signal(self, execution, number):
        for process in self.processes(execution):
            _kill(process, number)

    def _run(self, execution):
        folder = self._admin.folder / "executions" / execution.name
        try:
            reference = execution.spec.launch_plan
            if reference.resource_type == identifier_pb2.TASK:
                task = self._admin.find(self._admin.tasks, "task", reference)
                execution.phase = PHASES.RUNNING
                node = single_task_node(reference.name)
                record = execution.nodes[node.id] = NodeRecord(node.id, folder / node.id / "data", task=reference)
                outputs = self._task(execution, task.template, execution.inputs, record, node)
            else:
                plan = self._admin.find(self._admin.launch_plans, "launch plan", reference)
                spec = self._admin.find(self._admin.workflows, "workflow", plan.workflow_id)
                execution.phase = PHASES.RUNNING
                outputs = self._workflow(execution, spec, spec.template, execution.inputs, folder, "")
        except _Error as error:
            execution.finish(error.failed)
        except Exception as error:
            execution.finish(Failed(code="StandInError", message=repr(error), kind=execution_pb2.ExecutionError.SYSTEM))
        else:
            execution.finish(Succeeded(outputs))

    # Workflows

    def _workflow(self, execution, spec, template, inputs, folder, parent):
        """Run the nodes of a workflow, each as soon as it has its inputs. A failure aborts the other nodes."""
        values = {"": dict(inputs.literals), "start-node": dict(inputs.literals)}
        waiting = {node.id: node for node in template.nodes if node.id not in ("start-node", "end-node")}
        try:
            self._run_nodes(execution, spec, waiting, values, folder, parent)
        except _Error:
            if template.HasField("failure_node") and template.failure_node.id:
                execution.is_failing = False
                self._node(execution, spec, template.failure_node, values, folder, parent)
            raise
        outputs = literals_pb2.LiteralMap()
        for binding in template.outputs:
            outputs.literals[binding.var].CopyFrom(resolve(binding.binding, values))
        return outputs

    def _run_nodes(self, execution, spec, waiting, values, folder, parent):
        running, error = {}, None
        with concurrent.futures.ThreadPoolExecutor(len(waiting) or 1) as threads:
            while running or (waiting and error is None):
                ready = [node for node in waiting.values() if _needs(node) <= values.keys()] if error is None else []
                assert ready or running, f"a cycle among {list(waiting)}"
                for node in ready:
                    del waiting[node.id]
                    given = dict(values)
                    running[threads.submit(self._node, execution, spec, node, given, folder, parent)] = node
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    node = running.pop(future)
                    if future.exception() is None:
                        values[node.id] = dict(future.result().literals)
                    elif error is None:
                        error = future.exception()
                        execution.is_failing = True
                        self._signal(execution, signal.SIGTERM)
        if error is not None:
            raise error

    def _node(self, execution, spec, node, values, folder, parent):
        """Run a node, and keep its record."""
        name = unique_id(parent, node.id)
        record = execution.nodes[name] = NodeRecord(name, folder / node.id / "data", parent, task=task_of(node))
        try:
            outputs = self._run_node(execution, spec, node, values, record)
        except BaseException:
            record.phase = NODE.FAILED
            raise
        record.phase = NODE.SUCCEEDED
        return outputs

    def _run_node(self, execution, spec, node, values, record):
        inputs = literals_pb2.LiteralMap()
        for binding in node.inputs:
            inputs.literals[binding.var].CopyFrom(resolve(binding.binding, values))
        target = node.WhichOneof("target")
        if target == "task_node":
            task = self._task_of(spec, node.task_node.reference_id)
            outputs = self._task(execution, task, inputs, record, node)
            if isinstance(outputs, dynamic_job_pb2.DynamicJobSpec):
                template = workflow_pb2.WorkflowTemplate(nodes=outputs.nodes, outputs=outputs.outputs)
                none = literals_pb2.LiteralMap()
                return self._workflow(execution, _Job(outputs), template, none, record.folder / "dynamic", record.id)
            return outputs
        if target == "branch_node":
            try:
                node = chosen(node.branch_node.if_else, inputs)
            except LookupError as error:
                raise _failed("MalformedBranch", str(error)) from error
            return self._node(execution, spec, node, values, record.folder, record.id)
        if target == "workflow_node":
            which = node.workflow_node.WhichOneof("reference")
            if which == "sub_workflow_ref":
                template = next(sub for sub in spec.sub_workflows if sub.id == node.workflow_node.sub_workflow_ref)
                return self._workflow(execution, spec, template, inputs, record.folder, record.id)
            plan = self._admin.find(self._admin.launch_plans, "launch plan", node.workflow_node.launchplan_ref)
            inner = self._admin.find(self._admin.workflows, "workflow", plan.workflow_id)
            return self._workflow(execution, inner, inner.template, inputs, record.folder, record.id)
        if target == "array_node":
            return self._array(execution, spec, node, inputs, record)
        raise NotImplementedError(f"a node of the kind {target}")

    def _task_of(self, spec, reference):
        """Return the template of a task, which may be one that a dynamic task has made."""
        made = [task for task in getattr(spec, "tasks", ()) if task.id == reference]
        return made[0] if made else self._admin.find(self._admin.tasks, "task", reference).template

    def _array(self, execution, spec, node, inputs, record):
        task = self._task_of(spec, node.array_node.node.task_node.reference_id)
        lists = [literal for literal in inputs.literals.values() if literal.WhichOneof("value") == "collection"]
        size = len(lists[0].collection.literals)
        outputs = literals_pb2.LiteralMap()
        for index in range(size):
            environment = {"BATCH_JOB_ARRAY_INDEX_VAR_NAME": "FLYTE_INDEX", "FLYTE_INDEX": str(index)}
            element = NodeRecord(f"{record.id}-{index}", record.folder / str(index))
            part = self._task(execution, task, inputs, element, node, environment)
            for name, literal in part.literals.items():
                outputs.literals[name].collection.literals.append(literal)
        return outputs

    # Tasks

    def _task(self, execution, template, inputs, record, node, environment=None):
        """Run a task's attempts. The node says how long one may take and where it runs; the task, how many there are.

        As in propeller, a failure without an answer (a killed pod) counts against a budget of its own.
        """
        name = f"{execution.name}/{record.id}"
        metadata = node.array_node.node.metadata if node.WhichOneof("target") == "array_node" else node.metadata
        override = execution.spec.interruptible if execution.spec.HasField("interruptible") else None
        self.interruptible[name] = override.value if override is not None else metadata.interruptible
        failures = collections.Counter()
        attempt, previous = 0, ""
        while True:
            checkpoint = record.folder / f"raw-{attempt}" / "_flytecheckpoints"
            record.tasks.append(TASK.RUNNING)
            self.attempts.setdefault(name, []).append(time.time())
            try:
                outputs = self._attempt(
                    execution,
                    template,
                    inputs,
                    record,
                    checkpoint,
                    previous,
                    attempt,
                    environment,
                    timeout=metadata.timeout.ToTimedelta().total_seconds(),
                )
                record.tasks[-1] = TASK.SUCCEEDED
                return outputs
            except _Error:
                record.tasks[-1] = TASK.FAILED
                raise
            except _Retry as again:
                record.tasks[-1] = TASK.FAILED
                record.errors.append(again.failed.kind)
                stopped = (PHASES.ABORTING, PHASES.ABORTED)
                if self._closed or execution.phase in stopped or execution.is_failing:
                    raise _Error(again.failed) from None
                # As `isEligibleForRetry` in propeller's executor.go: the failure that is judged is not yet counted.
                allowed = self.system_failures if again.system else template.metadata.retries.retries
                if failures[again.system] >= allowed:
                    shown = allowed if again.system else allowed + 1
                    raise _Error(_exhausted(again.failed, shown)) from None
                failures[again.system] += 1
            attempt, previous = attempt + 1, str(checkpoint)

    def _attempt(self, execution, template, inputs, record, checkpoint, previous, attempt, environment, *, timeout):
        # As propeller names them: the inputs are in the node's folder, the outputs in one for each attempt.
        container, node, prefix = template.container, record.id, record.folder / str(attempt)
        prefix.mkdir(parents=True)
        work = prefix / "work"
        work.mkdir()
        (record.folder / "inputs.pb").write_bytes(inputs.SerializeToString())
        raw = container.HasField("data_config") and container.data_config.enabled
        variables = {
            ".input": str(record.folder / "inputs.pb"),
            ".outputPrefix": str(prefix),
            ".rawOutputDataPrefix": str(record.folder / f"raw-{attempt}"),
            ".checkpointOutputPrefix": str(checkpoint),
            ".prevCheckpointPrefix": previous,
            **({f".inputs.{name}": as_text(each) for name, each in inputs.literals.items()} if raw else {}),
        }
        command = [_fill(each, variables) for each in (*container.command, *container.args)]
        if raw:
            command = _copilot_before(container.data_config, command, inputs, work)
        variables = self._pod_environment(execution, template, prefix, attempt, environment or {})
        process = scripts.start(command, work, variables, prefix / "stdout")
        with self._lock:
            self._processes.setdefault(execution.key, {})[node, attempt] = process
        stopped = (PHASES.ABORTING, PHASES.ABORTED)
        if self._closed or execution.phase in stopped or execution.is_failing:  # too late to be signalled
            _kill(process, signal.SIGTERM)
        if self._is_drained(execution, process, timeout):
            thread = threading.Thread(target=self._end_pod, args=(execution, process, (node, attempt)), daemon=True)
            self._threads.append(thread)
            thread.start()
            failed = Failed(code="Interrupted", message="the node is gone", kind=execution_pb2.ExecutionError.SYSTEM)
            raise _Retry(failed, system=True)
        with self._lock:
            del self._processes[execution.key][node, attempt]
        if process.returncode is None:
            _kill(process, signal.SIGKILL)
            process.wait()
            message = f"task execution timeout [{timeout:g}s] expired"
            raise _Retry(Failed(code="TimeoutExpired", message=message), system=False)
        if raw and process.returncode == 0:
            return _copilot_after(work, template.interface.outputs.variables)
        return _read_outcome(process.returncode, prefix, bool(template.interface.outputs.variables))

    def _is_drained(self, execution, process, timeout):
        """Wait for the end of a pod, for its timeout at most. Return whether its machine was taken away before."""
        deadline = time.monotonic() + timeout if timeout else float("inf")
        while process.poll() is None and time.monotonic() < deadline:
            with self._lock:
                drained = self._drained.get(execution.key)
                if drained is not None and drained.is_set():
                    del self._drained[execution.key]
                    return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(0.05, max(0.0, deadline - time.monotonic())))
        return False

    def _end_pod(self, execution, process, key):
        """End the pod of a drained machine, as Kubernetes does: SIGTERM, the grace period, SIGKILL."""
        _kill(process, signal.SIGTERM)
        try:
            process.wait(self.grace)
        except subprocess.TimeoutExpired:
            _kill(process, signal.SIGKILL)
            process.wait()
        with self._lock:
            del self._processes[execution.key][key]

    def _pod_environment(self, execution, template, prefix, attempt, environment):
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("FLYTE_", "_F_"))}
        identifier = template.id
        pod = {
            "PATH": f"{SCRIPTS}{os.pathsep}{mine.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(self._python_path),
            "FLYTE_INTERNAL_EXECUTION_ID": execution.name,
            "FLYTE_INTERNAL_EXECUTION_PROJECT": execution.project,
            "FLYTE_INTERNAL_EXECUTION_DOMAIN": execution.domain,
            "FLYTE_INTERNAL_TASK_PROJECT": identifier.project,
            "FLYTE_INTERNAL_TASK_DOMAIN": identifier.domain,
            "FLYTE_INTERNAL_TASK_NAME": identifier.name,
            "FLYTE_INTERNAL_TASK_VERSION": identifier.version,
            "FLYTE_ATTEMPT_NUMBER": str(attempt),
            "FLYTE_LOCAL_SANDBOX_PATH": str(prefix / "sandbox"),
            **self._admin.client_environment,
        }
        pod |= {pair.key: pair.value for pair in template.container.env}
        pod |= {pair.key: pair.value for pair in execution.spec.envs.values}
        return mine | pod | self._environment | environment


def _exhausted(failed, attempts):
    """Return what propeller says of a task whose attempts are used up."""
    kind = execution_pb2.ExecutionError.ErrorKind.Name(failed.kind)
    return dataclasses.replace(
        failed,
        kind=execution_pb2.ExecutionError.USER,
        code=f"RetriesExhausted|{failed.code}",
        message=f"[{attempts}/{attempts}] currentAttempt done. Last Error: {kind}::{failed.message}",
    )


class _Retry(Exception):
    def __init__(self, failed, *, system):
        super().__init__(failed.message)
        self.failed = failed
        self.system = system


def _kill(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)


def _needs(node):
    needed = set(node.upstream_node_ids)

    def add(binding):
        which = binding.WhichOneof("value")
        if which == "promise":
            needed.add(binding.promise.node_id)
        elif which == "collection":
            for each in binding.collection.bindings:
                add(each)
        elif which == "map":
            for each in binding.map.bindings.values():
                add(each)

    for binding in node.inputs:
        add(binding.binding)
    return needed


def _fill(text, variables):
    return re.sub(r"{{\s*([\w.]+)\s*}}", lambda match: variables[match.group(1)], text)


def _copilot_before(config, command, inputs, work):
    """Write the inputs of a raw container as files, and let its paths point into a folder of this machine."""
    folders = {config.input_path: work / "in", config.output_path: work / "out"}
    for folder in folders.values():
        folder.mkdir()
    for name, literal in inputs.literals.items():
        (work / "in" / name).write_text(as_text(literal))
    for path, folder in folders.items():
        command = [each.replace(path, str(folder)) for each in command] if path else command
    return command


def _copilot_after(work, variables):
    outputs = literals_pb2.LiteralMap()
    for name, variable in variables.items():
        outputs.literals[name].CopyFrom(from_text((work / "out" / name).read_text().strip(), variable.type))
    return outputs


def _read_outcome(code, prefix, has_outputs):
    """Read how an attempt has ended. The files of a pod that has failed are not read."""
    text = (prefix / "stdout").read_text(errors="replace")[-2000:]
    if code != 0:
        raise _Retry(Failed(code="Interrupted", message=text, kind=execution_pb2.ExecutionError.SYSTEM), system=True)
    error, outputs = prefix / "error.pb", prefix / "outputs.pb"
    if error.exists():
        document = errors_pb2.ErrorDocument.FromString(error.read_bytes()).error
        kind = document.origin or execution_pb2.ExecutionError.USER
        failed = Failed(code=document.code, message=document.message, kind=kind)
        if document.kind == errors_pb2.ContainerError.RECOVERABLE:
            raise _Retry(failed, system=False)
        raise _Error(failed)
    if (prefix / "futures.pb").exists():
        return dynamic_job_pb2.DynamicJobSpec.FromString((prefix / "futures.pb").read_bytes())
    if outputs.exists():
        return literals_pb2.LiteralMap.FromString(outputs.read_bytes())
    if not has_outputs:
        return literals_pb2.LiteralMap()
    raise _failed("OutputsNotFound", f"outputs not found at {outputs}. {text}")
