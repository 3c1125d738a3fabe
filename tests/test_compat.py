"""Each private name of another package is where it was. A new version that moves one must fail here, and say which."""

import asyncio
import concurrent.futures
import inspect
import math
import os
import pathlib
import threading
import traceback
from types import SimpleNamespace

import grpc
import numpy as np
import optuna
import pytest
import sqlalchemy
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit import conditional, map_task, task, workflow
from flytekit.core import local_cache
from flytekit.core.base_task import Task
from flytekit.core.context_manager import FlyteContextManager, flyte_context_Var
from flytekit.core.type_engine import TypeEngine
from flytekit.core.worker_queue import Controller
from flytekit.deck.deck import Deck
from flytekit.utils import asyn
from flytekit.utils.asyn import loop_manager
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl._compat import flytekit as flytekit_names
from optuna_flyte_dsl._compat import optuna as optuna_names
from optuna_flyte_dsl._compat import optuna_database, optuna_grpc, optuna_journal
from optuna_flyte_dsl.engines.remote_trial.client import _TokenSender
from tests.support.flyteadmin import FlyteAdmin


@pytest.fixture
def study():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


@task
def number(x: float) -> float:
    return x


# flytekit's contexts


def test_a_stack_frame_is_found_as_flytekit_finds_it():
    def entering(find):
        def with_context():
            return find(limit=3)

        def enter():
            return with_context()

        return enter()

    def described(frame):
        return frame.filename, frame.name, frame.lineno, frame.line

    original = FlyteContextManager.get_origin_stackframe
    try:
        flytekit_names.find_stack_frames_fast()
        found = FlyteContextManager.get_origin_stackframe
        assert found.__module__ == flytekit_names.__name__
        with FlyteContextManager.with_context(FlyteContextManager.current_context().new_builder()) as context:
            assert "test_a_stack_frame" in context.get_origin_stackframe_repr()
    finally:
        FlyteContextManager.get_origin_stackframe = staticmethod(original)
    frames = [entering(find) for find in (_find_as_flytekit, found)]
    assert described(frames[0]) == described(frames[1])
    assert frames[0].name == "entering"


def _find_as_flytekit(limit):
    """Find a frame as flytekit 1.16 does."""
    return traceback.extract_stack(limit=limit + 1)[0]


def test_the_checkpoint_of_a_local_call_is_where_it_was(tmp_path):
    parameters = FlyteContextManager.current_context().user_space_params.builder()
    parameters.working_dir = str(tmp_path)
    inside = parameters.build().with_task_sandbox().build()
    assert os.listdir(inside.working_directory) == [flytekit_names.CHECKPOINT_FOLDER]


# Optuna


def test_a_suggestion_is_that_of_the_public_methods(study):
    kinds = {
        "x": optuna.distributions.FloatDistribution(0, 1),
        "n": optuna.distributions.IntDistribution(1, 9, step=2),
        "kind": optuna.distributions.CategoricalDistribution(("a", "b")),
    }
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    trial = study.ask()
    direct = {name: optuna_names.suggest(trial, name, kind) for name, kind in kinds.items()}
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    public = study.ask()
    assert direct == {
        "x": public.suggest_float("x", 0, 1),
        "n": public.suggest_int("n", 1, 9, step=2),
        "kind": public.suggest_categorical("kind", ["a", "b"]),
    }
    assert study.trials[trial.number].params == direct
    assert study.trials[trial.number].distributions == kinds
    assert all(study._storage.get_trial(0).distributions[name] is not kind for name, kind in kinds.items())
    with pytest.warns(RuntimeWarning, match="Inconsistent parameter values"):
        optuna_names.suggest(trial, "x", optuna.distributions.FloatDistribution(0, 2))


def test_a_trial_is_told_as_by_the_study(study):
    trial = study.ask()
    told = optuna_names.tell(study, trial, [1.5], TrialState.COMPLETE, skip_if_finished=False)
    assert told == study.trials[trial.number]
    assert (told.state, told.values) == (TrialState.COMPLETE, [1.5])
    assert told.datetime_complete is not None
    again = optuna_names.tell(study, trial, None, TrialState.FAIL, skip_if_finished=True)
    assert again.state is TrialState.COMPLETE
    with pytest.raises(ValueError, match=r"COMPLETE|finished"):
        optuna_names.tell(study, trial, [2.0], TrialState.COMPLETE, skip_if_finished=False)


def test_what_the_user_has_patched_is_called(study, monkeypatch):
    seen = []
    told, suggested = optuna.Study.tell, optuna.trial.Trial.suggest_float
    assert optuna_names.suggests_as_optuna(study.ask())
    monkeypatch.setattr(optuna.Study, "tell", lambda *args, **kwargs: (seen.append("tell"), told(*args, **kwargs))[1])
    optuna_names.tell(study, study.ask(), [1.0], TrialState.COMPLETE, skip_if_finished=False)
    monkeypatch.setattr(optuna.trial.Trial, "suggest_float", lambda *args: suggested(*args))
    assert not optuna_names.suggests_as_optuna(study.ask())
    assert seen == ["tell"]
    vars(study)["tell"] = lambda *args, **kwargs: seen.append("own")
    optuna_names.tell(study, study.ask(), [1.0], TrialState.COMPLETE, skip_if_finished=False)
    assert seen == ["tell", "own"]


def test_a_class_of_study_with_its_own_tell_is_told_by_it():
    seen = []

    class Study(optuna.Study):
        def tell(self, trial, *args, **kwargs):
            seen.append(trial.number)
            return super().tell(trial, *args, **kwargs)

    study = optuna.create_study()
    study.__class__ = Study
    optuna_names.tell(study, study.ask(), [1.0], TrialState.COMPLETE, skip_if_finished=False)
    assert seen == [0]


def test_a_trials_id_finds_it_in_its_storage(study):
    trial = study.ask()
    assert optuna_names.trial_id(trial) == optuna_names.trial_id(study.trials[0])
    assert optuna_names.storage_of(study).get_trial(optuna_names.trial_id(trial)).number == trial.number


def test_a_database_has_an_engine_and_a_journal_a_lock(tmp_path):
    database = optuna.storages.get_storage(f"sqlite:///{tmp_path}/s.db")
    assert optuna_names.engine_of(database).dialect.name == "sqlite"
    lock = object()
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    journal._backend._lock = lock
    assert optuna_names.journal_lock_of(journal) is lock
    assert optuna_names.engine_of(optuna.storages.InMemoryStorage()) is None
    assert optuna_names.journal_lock_of(optuna.storages.InMemoryStorage()) is None
    optuna_names.engine_of(database).dispose()


def test_the_tables_of_a_database_and_their_indexes_are_known(tmp_path):
    database = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db")

    def indexes():
        return {each["name"] for each in sqlalchemy.inspect(database.engine).get_indexes("studies")}

    assert indexes() == {"ix_studies_study_name"}
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP INDEX ix_studies_study_name"))
    database.engine.dispose()  # a connection of SQLite remembers the indexes that it has seen
    optuna_names.create_missing_indexes(database)
    optuna_names.create_missing_indexes(database)
    optuna_names.create_missing_indexes(optuna.storages.InMemoryStorage())
    assert indexes() == {"ix_studies_study_name"}
    assert not sqlalchemy.inspect(database.engine).get_indexes("trial_values")


def test_trials_in_a_database_are_made_read_and_written_in_few_statements(tmp_path):
    database = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db")
    assert optuna_database.database_of(optuna.storages.get_storage(database)) is database
    assert optuna_database.database_of(optuna.storages.InMemoryStorage()) is None
    study = optuna.create_study(storage=database)
    (number,) = (each.study_id if hasattr(each, "study_id") else each._study_id for each in database.get_all_studies())
    running = optuna.trial.TrialState.RUNNING
    made = [
        optuna_database.create_trial(database, number, optuna.trial.create_trial(state=running)) for _ in range(600)
    ]
    assert [each.number for each in made] == list(range(600))
    ids = [optuna_names.trial_id(each) for each in made]
    assert [each.number for each in optuna_database.read_trials(database, number, [ids[3]], ids[-2])] == [3, 599]
    assert optuna_database.read_states(database, number, ids[:3], None) == dict.fromkeys(ids[:3], running)
    assert optuna_database.read_states(database, number, ids[:-1], ids[-2]) == dict.fromkeys(ids, running)
    x = optuna.distributions.FloatDistribution(0, 1)
    for _ in range(2):
        optuna_database.write_together(database, ids[0], {"x": (0.5, x)}, {"a": 1}, {"b": 2})
    assert study.trials[0].params == {"x": 0.5}
    assert (study.trials[0].user_attrs, study.trials[0].system_attrs) == ({"a": 1}, {"b": 2})
    optuna_database.write_together(database, ids[0], {"x": (0.5, x), "y": (0.25, x)}, {"a": 3}, {})
    assert study.trials[0].params == {"x": 0.5, "y": 0.25}
    assert study.trials[0].user_attrs == {"a": 3}
    assert optuna_database.has_user_attr(database, ids[0], "a")
    assert not optuna_database.has_user_attr(database, ids[0], "b")
    study.tell(0, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        optuna_database.write_together(database, ids[0], {}, {"a": 2}, {})
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna_database.write_together(database, ids[1], {"z": (object(), x)}, {}, {})
    database.engine.dispose()


def test_the_number_of_good_trials_of_a_tpe_can_be_set():
    asked = []
    sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=5)
    optuna_names.set_number_of_good_trials(sampler, lambda number: asked.append(number) or 2)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)
    assert asked[0] == 5


def test_a_journal_writes_what_was_gathered_of_a_trial_at_once(tmp_path):
    written = []

    class Counting(JournalFileBackend):
        def append_logs(self, logs):
            super().append_logs(logs)
            written.append(len(logs))

    storage = optuna_journal.GatheringJournalStorage(Counting(str(tmp_path / "s.journal")))
    study = optuna.create_study(storage=storage)
    for ends_early in (False, True):
        trial = study.ask()
        number = optuna_names.trial_id(trial)
        storage.gather(number)
        trial.suggest_float("x", 0, 1)
        trial.suggest_int("n", 1, 9)
        trial.set_user_attr("a", 1)
        with pytest.raises(TypeError):
            trial.set_user_attr("b", object())
        written.clear()
        if not ends_early:
            storage.write(number)
            assert written == [3]
        study.tell(trial, 1.0)
        assert written == [3, 1]
        storage.write(number)
        other = optuna.load_study(study_name=study.study_name, storage=JournalStorage(storage._backend))
        assert other.trials[-1].params == trial.params
        assert other.trials[-1].user_attrs == {"a": 1}
        assert other.trials[-1].state is optuna.trial.TrialState.COMPLETE


def test_what_a_journal_refuses_is_refused_once(tmp_path):
    """Another process may end a trial while it is sampled. Each of its lines is then refused when it is read."""
    path = str(tmp_path / "s.journal")
    storage = optuna_journal.GatheringJournalStorage(JournalFileBackend(path))
    study = optuna.create_study(storage=storage, study_name="s")
    other = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(path)))
    healthy, ended = study.ask(), study.ask()
    storage.gather(optuna_names.trial_id(ended))
    ended.suggest_float("x", 0, 1)
    ended.suggest_float("y", 0, 1)
    ended.set_user_attr("a", 1)
    other.tell(ended.number, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.write(optuna_names.trial_id(ended))
    storage.write(optuna_names.trial_id(ended))
    healthy.suggest_float("x", 0, 1)
    study.tell(healthy, 1.0)
    assert [each.state.name for each in other.trials] == ["COMPLETE", "FAIL"]


def test_enqueued_parameters_can_be_read_and_set(study):
    study.enqueue_trial({"x": 0.25})
    assert optuna_names.enqueued_params_of(study.trials[0]) == {"x": 0.25}
    trial = study.ask()
    assert optuna_names.enqueued_params(trial) == {"x": 0.25}
    optuna_names.set_enqueued_params(trial, {"x": 0.75})
    assert trial.suggest_float("x", 0, 1) == 0.75
    assert optuna_names.cached_trial(trial).params == {"x": 0.75}
    study.ask()
    assert optuna_names.enqueued_params_of(study.trials[1]) is None


def test_a_detached_trial_leaves_the_first_one_as_it_is(study):
    trial = study.ask()
    detached = optuna_names.detached_trial(study, trial)
    detached.set_user_attr("note", 1)
    detached._cached_frozen_trial.params["y"] = 1
    assert optuna_names.cached_trial(trial).params == {}


def test_a_trial_can_be_read_anew(study):
    trial = study.ask()
    study._storage.set_trial_user_attr(trial._trial_id, "note", 1)
    optuna_names.refresh(trial)
    assert trial.user_attrs == {"note": 1}


def test_a_study_keeps_its_cache_for_each_thread(study):
    assert isinstance(vars(study)["_thread_local"], threading.local)
    assert {"in_optimize_loop", "cached_all_trials"} <= set(vars(type(study._thread_local)))
    optuna_names.share_cache_of_trials(study)
    assert study.ask().number == 0
    assert len(optuna_names.known_trials(study)) == 1


def test_a_history_that_was_found_can_be_read_while_another_thread_clears_it(study):
    optuna_names.share_cache_of_trials(study)
    cache = study._thread_local
    cache.cached_all_trials = [1]
    assert cache.cached_all_trials == [1]  # what Optuna has set, it reads once
    for _ in range(2):
        assert cache.cached_all_trials == [1]  # the test for None
        clearing = threading.Thread(target=setattr, args=(cache, "cached_all_trials", None))
        clearing.start()
        clearing.join()
        assert cache.cached_all_trials == [1]
        assert cache.cached_all_trials is None
        cache.cached_all_trials = [1]
        assert cache.cached_all_trials == [1]


def test_a_studys_storage_can_be_replaced_and_its_history_cut(study):
    other = optuna.storages.InMemoryStorage()
    optuna_names.set_storage(study, other)
    assert optuna_names.storage_of(study) is other
    cut = optuna_names.with_trials(optuna.Study, [])
    assert "_get_trials" in vars(cut)
    assert {"deepcopy", "states", "use_cache"} <= set(inspect.signature(optuna.Study._get_trials).parameters)


def test_a_trial_has_its_parts():
    trial = optuna.create_study().ask()
    assert {"_trial_id", "_cached_frozen_trial", "_fixed_params", "storage", "study"} <= set(vars(trial))


def test_optunas_storage_proxy_is_where_it_was():
    assert "GrpcClientCache" in vars(optuna_grpc._client)
    assert "_setup" in vars(optuna_grpc.GrpcStorageProxy)
    channel = grpc.insecure_channel("127.0.0.1:1")
    client = optuna_grpc.StorageProxyClient(channel, _TokenSender("token"))
    assert isinstance(client.channel, grpc.Channel)
    client.close()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        optuna_grpc.serve_storage(optuna.storages.InMemoryStorage(), grpc.server(pool))


# flytekit


def test_the_interface_of_a_task_can_be_changed():
    inputs = flytekit_names.interface_inputs(number)
    assert inputs["x"][0] is float
    assert inputs is number.python_interface._inputs


def test_a_task_can_get_another_function_and_no_deck():
    assert flytekit_names.task_function(number)(x=1.0) == 1.0
    changed = flytekit_names.with_task_function(number, lambda x: x + 1)
    assert (changed.execute(x=1.0), number.execute(x=1.0)) == (2.0, 1.0)

    @task(enable_deck=True)
    def decorated(x: float) -> float:
        return x

    assert decorated._disable_deck is False
    without = flytekit_names.without_deck(decorated)
    assert (without._disable_deck, without._deck_fields) == (True, [])
    assert flytekit_names.without_deck(number) is number


def test_the_task_of_a_map_task_can_be_wrapped():
    mapped = map_task(number)
    wrapped = flytekit_names.with_element_task(mapped, lambda element: ("wrapped", element))
    assert wrapped._run_task == ("wrapped", mapped._run_task)


def test_a_workflows_function_and_a_conditionals_branches_are_found():
    @workflow
    def choose(x: float) -> float:
        return (
            conditional("sign")
            .if_(x > 0.0)
            .then(number(x=x))
            .elif_(x < -1.0)
            .then(number(x=x))
            .else_()
            .then(number(x=x))
        )

    assert flytekit_names.workflow_function(choose).__name__ == "choose"
    branch = next(node.flyte_entity for node in choose.nodes)
    assert [node.flyte_entity for node in flytekit_names.branch_nodes(branch)] == [number] * 3


def test_the_root_of_a_package_is_found(tmp_path):
    (tmp_path / "package").mkdir()
    for file in ("package/__init__.py", "package/module.py"):
        (tmp_path / file).write_text("")
    assert flytekit_names.project_root(str(tmp_path / "package" / "module.py")) == str(tmp_path)


def test_the_caches_of_flytekit_are_where_they_were():
    assert {"_initialized"} <= set(vars(local_cache.LocalTaskCache))
    assert hasattr(local_cache, "joblib")
    flytekit_names.open_local_cache()
    assert local_cache.LocalTaskCache._initialized
    flytekit_names.close_cache_connection()
    assert local_cache.LocalTaskCache._cache is not None
    cache = getattr(TypeEngine, "_LITERAL_CACHE", None)
    flytekit_names.wrap_literal_cache(lambda inner: pytest.fail("it is wrapped already"), type(cache))


def test_flytekit_asks_for_a_transformer_first(monkeypatch):
    class Kind:
        pass

    monkeypatch.setattr(TypeEngine, "_get_transformer", TypeEngine._get_transformer)
    mine = TypeEngine.get_transformer(str)
    flytekit_names.find_transformer_first(lambda kind: mine if kind is Kind else None)
    assert TypeEngine.get_transformer(Kind) is mine
    assert TypeEngine.get_transformer(int) is not mine


@pytest.mark.newest
def test_the_cache_of_literals_is_where_it_was():
    assert hasattr(TypeEngine, "_LITERAL_CACHE")


def test_the_event_loop_of_a_thread_can_be_replaced_and_stopped():
    runner = asyn._TaskRunner()

    async def one():
        return 1

    assert runner.run(one()) == 1
    flytekit_names.set_runner("a thread of this test", runner)
    assert flytekit_names.runner_of("a thread of this test") is runner
    assert any("a thread of this test" in key for key in loop_manager._runner_map)
    assert flytekit_names.pop_runners("a thread of this test") == [runner]
    assert flytekit_names.runner_of("a thread of this test") is None
    flytekit_names.stop_runner(runner)
    assert not runner._TaskRunner__runner_thread.is_alive()


def test_the_threads_and_contexts_of_flytekit_are_where_they_were():
    assert isinstance(loop_manager._runner_map, dict)
    assert list(inspect.signature(Task.sandbox_execute).parameters)[1:] == ["ctx", "input_literal_map"]
    runner = asyn._TaskRunner()
    assert {"_TaskRunner__loop", "_TaskRunner__runner_thread"} <= vars(runner).keys()
    assert callable(runner._close)
    assert isinstance(local_cache.LocalTaskCache._initialized, bool)
    assert local_cache.joblib.hash(b"")
    assert isinstance(flyte_context_Var.get(), list)
    loop_manager.run_sync(asyncio.sleep, 0)
    assert f"{threading.current_thread().name}PID:{os.getpid()}" in loop_manager._runner_map


def test_the_parts_of_flytekits_controller_are_where_they_were():
    source = inspect.getsource(Controller)
    assert "self.__runner_thread" in source
    assert "self.__loop.stop()" in source
    assert "self.__loop =" not in source, "flytekit must not set what we put there"
    controller = type("Stands", (), {"_Controller__runner_thread": threading.current_thread()})()
    assert flytekit_names.controller_thread(controller) is threading.current_thread()
    flytekit_names.set_stop_handler(controller, "handler")
    assert controller._Controller__loop == "handler"


def test_a_request_to_flyteadmin_is_sent_once_though_flytekits_client_would_send_it_again(tmp_path):
    with FlyteAdmin(tmp_path) as admin:
        client = admin.remote().client
        call = flytekit_names.admin_method(client, "GetExecution")
        name = WorkflowExecutionIdentifier(project="project", domain="development", name="none")
        with pytest.raises(grpc.RpcError) as failed:
            call(WorkflowExecutionGetRequest(id=name), timeout=10)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert admin.counts["GetExecution"] == 1, "an interceptor has sent it again"
        call = flytekit_names.admin_method_without_login(client, "GetExecution")
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            call(WorkflowExecutionGetRequest(id=name), timeout=10)
    channel = flytekit_names.channel_without_retries(client)
    assert callable(channel.unary_unary)
    assert channel is not client._channel
    assert hasattr(client, "_metadata")


def test_uploads_and_decks_can_be_set():
    from flytekit.core.data_persistence import FileAccessProvider

    assert "_get_upload_signed_url_fn" in inspect.getsource(__import__("flytekit").remote.FlyteRemote)
    access = FileAccessProvider("/tmp/a", "/tmp/b")
    flytekit_names.set_upload_location(access, len)
    assert access._get_upload_signed_url_fn is len
    assert "self._html" in inspect.getsource(Deck)
    deck = type("Deck", (), {})()
    flytekit_names.set_deck_html(deck, "page")
    assert deck._html == "page"


def test_every_function_of_compat_has_a_test_here():
    tests = pathlib.Path(__file__).read_text()
    for module in (flytekit_names, optuna_names, optuna_grpc):
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_"):
                assert f".{name}(" in tests, f"{module.__name__}.{name}"


def test_a_study_has_a_key_a_cache_of_trials_and_attributes(study):
    study.tell(study.ask(), 1.0)
    with_pruner = optuna.create_study(pruner=optuna.pruners.HyperbandPruner(1, 4))
    seen = []

    class Spy(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            seen.append(optuna_names.study_key(study))
            optuna_names.add_to_study_attribute(study, "names", trial.number)

    with_pruner.sampler = Spy()
    with_pruner.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert seen == [optuna_names.study_key(with_pruner)] * 2 != [optuna_names.study_key(study)] * 2
    assert with_pruner.user_attrs == {"names": [0, 1]}
    complete = optuna_names.known_trials(study, (optuna.trial.TrialState.COMPLETE,))
    assert [trial.value for trial in complete] == [1.0]
    study.add_trial(optuna.trial.create_trial(value=2.0))
    assert len(optuna_names.known_trials(study)) == 1
    assert optuna_names.stored_trial(study, optuna_names.trial_id(study.trials[0])).number == 0
    assert len(optuna_names.known_trials(study)) == 2


def test_all_trials_can_be_read_without_a_copy(study):
    trials = optuna_names.trials_to_read(study)
    study.add_trial(optuna.trial.create_trial(value=2.0))
    assert [trial.value for trial in trials] == [2.0]
    assert trials is optuna_names.trials_to_read(study, as_of_ask=True)


def test_a_storage_of_another_kind_is_asked_for_all_trials():
    class Storage(optuna.storages.InMemoryStorage):
        pass

    study = optuna.create_study(storage=Storage())
    study.ask()
    optuna_names.known_trials(study)
    study.add_trial(optuna.trial.create_trial(value=2.0))
    assert len(optuna_names.trials_to_read(study)) == 2
    assert len(optuna_names.trials_to_read(study, as_of_ask=True)) == 1


def test_whether_the_gp_sampler_knows_running_trials_is_known():
    assert optuna_names.gp_knows_running_trials() is (int(optuna.__version__.split(".")[0]) >= 5)


class Tensor(np.ndarray):
    """Has a method that tensors of torch have."""

    def log(self):
        return np.log(self)


def test_a_gp_sampler_expects_some_lengthscales():
    sampler = optuna.samplers.GPSampler(seed=1)
    assert callable(sampler._log_prior)  # Optuna's own
    sampler._log_prior = lambda _: 100.0
    optuna_names.expect_lengthscales(sampler, lambda n: 0.25 * n, 2.0)

    def log_prior(*lengthscales):
        model = SimpleNamespace(inverse_squared_lengthscales=(np.array(lengthscales) ** -2.0).view(Tensor))
        return float(sampler._log_prior(model))

    assert log_prior(0.5, 0.5) == pytest.approx(100.0)
    assert log_prior(0.25) == pytest.approx(100.0)
    assert log_prior(0.5 * math.e**2, 0.5) == pytest.approx(99.5)
    assert log_prior(0.5 / math.e**2, 0.5 * math.e**4) == pytest.approx(97.5)


def test_a_sampled_point_is_known_before_it_is_suggested():
    study = optuna.create_study()
    told, asked = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), study.ask()
    study.tell(told, 0.0)
    optuna_names.store_point(study, optuna_names.cached_trial(asked), {"x": 0.5, "y": "a" * 5000})
    optuna_names.store_point(study, optuna_names.cached_trial(asked), {"x": object()})  # JSON has no form for it
    done, running = study.get_trials()
    assert optuna_names.point_of(done) == done.params
    expected = {"x": 0.5, "y": "a" * 5000} if optuna_names.gp_knows_running_trials() else {}
    assert optuna_names.point_of(running) == expected


def test_the_function_of_which_a_task_is_made_is_found(monkeypatch):
    found = []
    get_type = type(TypeEngine.get_transformer(float)).get_literal_type

    def spy(self, kind=None):
        found.append(flytekit_names.function_that_becomes_a_task())
        return get_type(self, kind)

    monkeypatch.setattr(type(TypeEngine.get_transformer(float)), "get_literal_type", spy)

    def function(x: float) -> float:
        return x

    task(function)
    assert set(found) == {function}
    assert flytekit_names.function_that_becomes_a_task() is None


def test_the_size_of_a_grid_is_known():
    assert optuna_names.grid_size(optuna.samplers.GridSampler({"x": [1, 2, 3], "y": [0, 1]})) == 6


def test_the_bytes_of_a_journal_that_were_read_are_known(tmp_path):
    path = tmp_path / "s.journal"
    file = JournalFileBackend(str(path))
    optuna.create_study(storage=JournalStorage(file)).ask()
    assert optuna_journal.bytes_read(file) == path.stat().st_size > 0
    assert list(file._log_number_offset.values()) == sorted(file._log_number_offset.values())
