"""Private names of flytekit. Only the package `engines._flytekit` imports this module."""

import atexit
import copy
import os
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from flytekit.clients.grpc_utils.wrap_exception_interceptor import RetryExceptionWrapperInterceptor
from flytekit.core import local_cache
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.python_function_task import PythonFunctionTask
from flytekit.core.type_engine import TypeEngine
from flytekit.tools import script_mode
from flytekit.utils.asyn import loop_manager

# Tasks and workflows.


def interface_inputs(task: Any) -> dict[str, tuple[Any, Any]]:
    """Return the inputs of a task's interface, name -> (type, default), to change a type in place."""
    inputs: dict[str, tuple[Any, Any]] = task.python_interface._inputs
    return inputs


def task_function(task: Any) -> Callable[..., Any] | None:
    """Return the function that a task runs, to wrap that function; `None` for a task without a function."""
    return getattr(task, "_task_function", None)


def with_task_function(task: Any, function: Callable[..., Any]) -> Any:
    """Return a copy of a task that runs another function."""
    changed = copy.copy(task)
    changed._task_function = function
    return changed


def without_deck(task: Any) -> Any:
    """Return a copy of a task that writes no Deck: for the Deck of a local call, flytekit would run `pip` twice."""
    if getattr(task, "_disable_deck", True):
        return task
    changed = copy.copy(task)
    changed._disable_deck = True
    changed._deck_fields = []
    return changed


def with_element_task(map_task: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return a copy of a map task in which the task of each element is wrapped."""
    changed = copy.copy(map_task)
    changed._run_task = wrap(map_task._run_task)
    return changed


def workflow_function(workflow: Any) -> Any:
    """Return the function of a workflow, to find its source file; the workflow itself if it has none."""
    return getattr(workflow, "_workflow_function", workflow)


def branch_nodes(branch: Any) -> Iterator[Any]:
    """Yield the nodes of a conditional's branches, to check that a pod can load their tasks."""
    block = branch._ifelse_block
    yield block.case.then_node
    yield from (other.then_node for other in block.other or ())
    yield block.else_node


def project_root(path: str) -> str:
    """Return the root folder of a source file's package: what `pyflyte run --remote` packages."""
    return str(script_mode._find_project_root(path))


# Types.


def find_transformer_first(find: Callable[[Any], Any]) -> None:
    """Make flytekit use the transformer that `find` returns for a type; flytekit looks for one itself if it is `None`.

    Flytekit has no public way to transform an annotated Enum or Literal: their own transformers refuse annotations.
    """
    search = TypeEngine._get_transformer

    def get_transformer(_cls: type[TypeEngine[Any]], python_type: Any) -> Any:
        found = find(python_type)
        return search(python_type) if found is None else found

    TypeEngine._get_transformer = classmethod(get_transformer)  # type: ignore[method-assign,assignment]


# Contexts.

CHECKPOINT_FOLDER = "__cp"  # the folder of a local call's checkpoint in the call's working directory


def function_that_becomes_a_task() -> Callable[..., Any] | None:
    """Return the function of which flytekit makes a task in this thread, to name it in an error; else `None`."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is PythonFunctionTask.__init__.__code__:
            function: Callable[..., Any] | None = frame.f_locals.get("task_function")
            return function
        frame = frame.f_back
    return None


def find_stack_frames_fast() -> None:
    """Make flytekit find the frame that enters a context without reading its source, which takes most of the time.

    Flytekit shows the frame's file, line and function in debug messages only.
    """
    FlyteContextManager.get_origin_stackframe = staticmethod(_stack_frame)  # type: ignore[method-assign]


def _stack_frame(limit: int = 2) -> traceback.FrameSummary:
    frame = sys._getframe()
    for _ in range(limit):
        frame = frame.f_back or frame
    code = frame.f_code
    return traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)


# Caches.


def wrap_literal_cache(wrap: Callable[[MutableMapping[Any, Any]], Any], kind: type) -> None:
    """Wrap the one cache of literals that all threads share, unless it is an instance of `kind` already."""
    cache = getattr(TypeEngine, "_LITERAL_CACHE", None)  # the first releases of flytekit 1.16 have no `_LITERAL_CACHE`
    if cache is not None and not isinstance(cache, kind):
        TypeEngine._LITERAL_CACHE = wrap(cache)


def open_local_cache() -> None:
    """Open flytekit's local cache of task outputs now: threads would race in its lazy import and its initialization."""
    if not local_cache.LocalTaskCache._initialized:
        local_cache.joblib.hash(b"")
        local_cache.LocalTaskCache.initialize()


def close_cache_connection() -> None:
    """Close this thread's connection to the local cache.

    Flytekit opens the connection anew when this thread needs the cache again.
    """
    if local_cache.LocalTaskCache._initialized and hasattr(local_cache.LocalTaskCache._cache, "close"):
        local_cache.LocalTaskCache._cache.close()


# Event loops. Flytekit keeps, for each thread name, a runner that runs coroutines in an event loop in another thread.


def runner_of(thread_name: str) -> Any:
    """Return the runner of flytekit's coroutines in a thread; `None` if the thread has none yet."""
    return loop_manager._runner_map.get(_runner_key(thread_name))


def set_runner(thread_name: str, runner: Any) -> None:
    """Make flytekit use another runner of coroutines for a thread."""
    loop_manager._runner_map[_runner_key(thread_name)] = runner


def pop_runners(thread_name: str) -> list[Any]:
    """Forget and return the runners of a thread, and of the threads that flytekit has started for it."""
    runners = loop_manager._runner_map
    keys = [key for key in list(runners) if key.startswith(f"{thread_name} : loop-runner")]
    return [runners.pop(key) for key in [_runner_key(thread_name), *keys] if key in runners]


def stop_runner(runner: Any) -> None:
    """Stop one of flytekit's threads that run coroutines: flytekit itself never stops one.

    The runner's thread closes its event loop.
    """
    atexit.unregister(runner._close)
    loop = runner._TaskRunner__loop
    thread = runner._TaskRunner__runner_thread
    if loop is not None and thread is not None and thread is not threading.current_thread():
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _runner_key(thread_name: str) -> str:
    return f"{thread_name}PID:{os.getpid()}"


# Controllers of eager workflows, clients of flyteadmin, uploads and Decks.


def controller_thread(controller: Any) -> threading.Thread:
    """Return the thread of an eager workflow's controller, which flytekit joins at Python's exit."""
    thread: threading.Thread = controller._Controller__runner_thread
    return thread


def set_stop_handler(controller: Any, handler: Any) -> None:
    """Make flytekit's handler of SIGTERM call `handler.stop()` first, on the main thread.

    Flytekit's handler calls `stop()` of the controller's event loop, an attribute that flytekit itself never sets.
    """
    controller._Controller__loop = handler


def admin_method(client: Any, rpc: str) -> Callable[..., Any]:
    """Return an RPC of flyteadmin with its metadata, without the retries of the client.

    The client's outermost interceptor repeats a failed request up to three times, immediately and whatever the error.
    """
    stub = _stubs.get(client) or _stubs.setdefault(client, type(client._stub)(channel_without_retries(client)))
    method = getattr(stub, rpc)
    return lambda request, timeout: method(request, metadata=client._metadata, timeout=timeout)


_stubs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # client -> its stub


def channel_without_retries(client: Any) -> Any:
    """Return a client's channel without the interceptor that retries. gRPC defines `_channel` and `_interceptor`."""
    return _inside_of(client._channel, RetryExceptionWrapperInterceptor)


def admin_method_without_login(client: Any, rpc: str) -> Callable[..., Any]:
    """Return an RPC of flyteadmin that is sent without a token, to learn whether flyteadmin asks for one."""
    method = getattr(type(client._stub)(_inside_of(client._channel, object)), rpc)
    return lambda request, timeout: method(request, timeout=timeout)


def _inside_of(channel: Any, interceptor: type) -> Any:
    """Return a channel without its outermost interceptors of a class."""
    while hasattr(channel, "_interceptor") and isinstance(channel._interceptor, interceptor):
        channel = channel._channel
    return channel


def set_upload_location(file_access: Any, get_signed_url: Callable[..., Any]) -> None:
    """Make uploads use signed URLs, as `FlyteRemote` does before a launch.

    A search that runs on a laptop needs signed URLs to upload its inputs.
    """
    file_access._get_upload_signed_url_fn = get_signed_url


def set_deck_html(deck: Any, html: str) -> None:
    """Set the page of a Deck. The Deck's public method only appends to the page."""
    deck._html = html
