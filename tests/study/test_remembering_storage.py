"""Tests that what a search remembers of a study in a database is what the database has."""

import contextlib
import itertools
import math
import threading

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from optuna_flyte_dsl import Float, Integer, Optimizer
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.study.remembering_storage import RememberingStorage, remembering
from optuna_flyte_dsl.study.storages import open_storage

SPACE = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9), "kind": CategoricalDistribution(["a", None, 2])}
ENDS = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
names = itertools.count()
# JSON makes a list of the tuple, and text of the key.
values = st.sampled_from([1, "text", None, [1, {"a": 2}], (1, 2), {3: 4.5}, math.inf])


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Three storage objects of one database, as three processes have them."""
    url = f"sqlite:///{tmp_path_factory.mktemp('database')}/study.db"
    made = [RDBStorage(url) for _ in range(3)]
    yield made
    for each in made:
        each.engine.dispose()


def facts(trial):
    """What a trial has, but for the moment of its end, which the process takes a moment after the database."""
    return {name: value for name, value in vars(trial).items() if name != "datetime_complete"}


class Searches:
    """Two searches of one study, and the database itself."""

    def __init__(self, databases):
        *own, self.truth = databases
        self.study = self.truth.create_new_study([StudyDirection.MINIMIZE], f"study-{next(names)}")
        self.storages = [RememberingStorage(each, each) for each in own]
        self.owners = {}  # an unfinished trial's id -> the search that runs it; `None` while it waits
        self.gathering = set()

    def run(self, storage):
        """Return the id of a new running trial."""
        return storage.create_new_trial(self.study, create_trial(state=TrialState.RUNNING))

    def gather(self, storage):
        """Return the id of a trial for which something was gathered. Its parameter is known from an earlier trial."""
        storage.set_trial_param(self.run(storage), "x", 0.25, SPACE["x"])
        trial = self.run(storage)
        storage.gather(trial)
        storage.set_trial_param(trial, "x", 0.5, SPACE["x"])
        storage.set_trial_user_attr(trial, "a", 1)
        return trial

    def check(self):
        written = [each for each in self.truth.get_all_trials(self.study) if trial_id(each) not in self.gathering]
        for storage in self.storages:
            seen = [each for each in storage.get_all_trials(self.study) if trial_id(each) not in self.gathering]
            assert list(map(facts, seen)) == list(map(facts, written))
            for states in ((TrialState.WAITING,), (TrialState.RUNNING, TrialState.WAITING), ENDS):
                found = storage.get_all_trials(self.study, deepcopy=False, states=states)
                assert [trial_id(t) for t in found if trial_id(t) not in self.gathering] == [
                    trial_id(each) for each in written if each.state in states
                ]
            for each in written:
                assert facts(storage.get_trial(trial_id(each))) == facts(each)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_remembered_is_what_the_database_has(data, databases):
    searches = Searches(databases)
    for _ in range(data.draw(st.integers(1, 12))):
        who = data.draw(st.integers(0, 1))
        storage, other = searches.storages[who], searches.storages[1 - who]
        mine = [each for each, owner in searches.owners.items() if owner == who]
        theirs = [each for each, owner in searches.owners.items() if owner == 1 - who]
        waiting = [each for each, owner in searches.owners.items() if owner is None]
        steps = ["create", "enqueue", "insert", "look"]
        steps += ["param", "user", "system", "report", "end", "give back", "gather"] if mine else []
        steps += ["acquire"] if waiting else []
        steps += ["end another's"] if theirs else []
        step = data.draw(st.sampled_from(steps))
        trial = data.draw(st.sampled_from(mine)) if mine else None
        if step == "create":
            template = create_trial(state=TrialState.RUNNING, system_attrs={"owner": {"pid": (1, 2)}})
            searches.owners[storage.create_new_trial(searches.study, template)] = who
        elif step == "enqueue":
            template = create_trial(state=TrialState.WAITING, user_attrs={"a": data.draw(values)})
            searches.owners[storage.create_new_trial(searches.study, template)] = None
        elif step == "insert":
            storage.create_new_trial(
                searches.study, create_trial(value=1.5, params={"x": 0.25}, distributions={"x": SPACE["x"]})
            )
        elif step == "param":
            name = data.draw(st.sampled_from(sorted(SPACE)))
            if name not in storage.get_trial(trial).params:
                value = {"x": 0.5, "n": 3, "kind": data.draw(st.integers(0, 2))}[name]
                storage.set_trial_param(trial, name, value, SPACE[name])
        elif step in ("user", "system"):
            key = data.draw(st.sampled_from("ab"))
            set_attr = storage.set_trial_user_attr if step == "user" else storage.set_trial_system_attr
            set_attr(trial, key, data.draw(values))
        elif step == "report":
            storage.set_trial_intermediate_value(trial, data.draw(st.integers(0, 2)), data.draw(st.floats(width=32)))
            if math.isnan(storage.get_trial(trial).intermediate_values.get(0, 0.0)):
                storage.set_trial_intermediate_value(trial, 0, 1.0)  # NaN equals nothing, not even itself
            for reported in (1, 2):
                if math.isnan(storage.get_trial(trial).intermediate_values.get(reported, 0.0)):
                    storage.set_trial_intermediate_value(trial, reported, 1.0)
        elif step == "gather" and trial not in searches.gathering:
            storage.gather(trial)
            searches.gathering.add(trial)
        elif step == "gather":
            storage.write(trial)
            searches.gathering.discard(trial)
        elif step == "end":
            state = data.draw(st.sampled_from(ENDS))
            assert storage.set_trial_state_values(trial, state, [0.5] if state is TrialState.COMPLETE else None)
            searches.gathering.discard(trial)
            del searches.owners[trial]
        elif step == "give back" and trial not in searches.gathering:
            assert storage.set_trial_state_values(trial, TrialState.WAITING)
            searches.owners[trial] = None
        elif step == "acquire":
            taken = data.draw(st.sampled_from(waiting))
            assert storage.set_trial_state_values(taken, TrialState.RUNNING)
            assert not other.set_trial_state_values(taken, TrialState.RUNNING)
            searches.owners[taken] = who
        elif step == "end another's":
            taken = data.draw(st.sampled_from([each for each in theirs if each not in searches.gathering] or theirs))
            if taken not in searches.gathering:
                storage.set_trial_user_attr(taken, "lost", True)
                storage.set_trial_state_values(taken, TrialState.FAIL)
                del searches.owners[taken]
        searches.check()


def test_lists_and_trials_that_were_given_out_do_not_change(databases):
    searches = Searches(databases)
    storage = searches.storages[0]
    trial = searches.run(storage)
    (before,) = given_out = storage.get_all_trials(searches.study, deepcopy=False)
    storage.get_trial(trial).params["x"] = 3.0
    storage.set_trial_param(trial, "x", 0.5, SPACE["x"])
    searches.run(storage)
    assert before.params == {}
    assert given_out == [before]
    assert storage.get_trial(trial).params == {"x": 0.5}


def test_a_trial_that_was_ended_elsewhere_cannot_be_changed(databases):
    searches = Searches(databases)
    storage, other = searches.storages
    trial = searches.run(storage)
    other.set_trial_user_attr(trial, "lost", True)
    other.set_trial_state_values(trial, TrialState.FAIL)
    for change in (
        lambda: storage.set_trial_param(trial, "x", 0.5, SPACE["x"]),
        lambda: storage.set_trial_user_attr(trial, "a", 1),
        lambda: storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0]),
    ):
        with pytest.raises(UpdateFinishedTrialError):
            change()
    assert storage.get_trial(trial).state is TrialState.FAIL
    assert storage.get_trial(trial).user_attrs == {"lost": True}


def test_a_shared_trial_is_read_anew(databases):
    """A pod may open the storage itself, and write its trial's reports there."""
    searches = Searches(databases)
    storage, pod = searches.storages
    trial = searches.run(storage)
    storage.share(trial)
    pod.set_trial_intermediate_value(trial, 1, 0.5)
    (seen,) = storage.get_all_trials(searches.study)
    assert seen.intermediate_values == {1: 0.5} == storage.get_trial(trial).intermediate_values
    pod.set_trial_intermediate_value(trial, 2, 0.25)
    storage.set_trial_state_values(trial, TrialState.PRUNED, [0.25])
    (seen,) = storage.get_all_trials(searches.study)
    assert seen.intermediate_values == {1: 0.5, 2: 0.25}


def test_a_change_of_the_owner_is_seen_where_it_matters(databases):
    searches = Searches(databases)
    storage, other = searches.storages
    trial = storage.create_new_trial(searches.study, create_trial(state=TrialState.RUNNING, system_attrs={"mine": 1}))
    other.set_trial_system_attr(trial, "mine", None)
    assert storage.read_anew(trial).system_attrs == {"mine": None}


def test_another_distribution_of_a_parameter_is_refused(databases):
    searches = Searches(databases)
    for storage in searches.storages:
        trial = searches.run(storage)
        storage.set_trial_param(trial, "x", 0.5, SPACE["x"])
        again = searches.run(storage)
        with pytest.raises(ValueError, match="distribution"):
            storage.set_trial_param(again, "x", 1, SPACE["kind"])


def test_a_write_is_repeated_without_harm(databases, monkeypatch):
    """The answer of a commit may be lost."""
    searches = Searches(databases)
    storage = searches.storages[0]
    trial = searches.gather(storage)
    write = RememberingStorage._self_write

    def lose_the_answer(self, number, batch):
        write(self, number, batch)
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(RememberingStorage, "_self_write", lose_the_answer)
        with pytest.raises(OSError):
            storage.write(trial)
    storage.set_trial_user_attr(trial, "b", 2)  # it is written with what is written again
    storage.set_trial_state_values(trial, TrialState.FAIL)
    assert storage.read_anew(trial).params == {"x": 0.5} == storage.get_trial(trial).params
    assert storage.read_anew(trial).user_attrs == {"a": 1, "b": 2} == storage.get_trial(trial).user_attrs


def test_an_attribute_that_another_search_has_just_set_is_found(databases):
    searches = Searches(databases)
    storage, other = searches.storages
    trial = searches.run(storage)
    assert not storage.has_user_attr(trial, "lost")
    other.set_trial_user_attr(trial, "lost", True)
    storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    assert storage.get_trial(trial).user_attrs == {}
    assert storage.has_user_attr(trial, "lost")
    assert storage.get_trial(trial).user_attrs == {"lost": True}


def test_no_trial_is_hidden_by_those_that_several_threads_make(databases):
    """A trial of another search has a number between those of two trials of this search."""
    searches = Searches(databases)
    storage, other = searches.storages
    running = create_trial(state=TrialState.RUNNING)
    storage.create_new_trial(searches.study, running)
    other.create_new_trial(searches.study, running)
    storage.create_new_trial(searches.study, running)
    storage.create_new_trial(searches.study, running)
    assert [each.number for each in storage.get_all_trials(searches.study)] == [0, 1, 2, 3]


def test_an_adopted_trial_keeps_what_is_gathered_for_it(databases):
    searches = Searches(databases)
    storage, other = searches.storages
    trial = searches.run(other)
    storage.get_all_trials(searches.study)
    storage.gather(trial)
    storage.set_trial_system_attr(trial, "a", 1)
    storage.get_all_trials(searches.study)
    assert storage.get_trial(trial).system_attrs == {"a": 1}


def test_what_was_gathered_can_be_read_before_it_is_written(databases):
    """A sampler reads the system attributes that it has set for the trial."""
    searches = Searches(databases)
    storage = searches.storages[0]
    trial = searches.gather(storage)
    storage.set_trial_system_attr(trial, "b", 2)
    assert storage.get_trial_params(trial) == {"x": 0.5}
    assert storage.get_trial_user_attrs(trial) == {"a": 1}
    assert storage.get_trial_system_attrs(trial) == {"b": 2}
    assert searches.truth.get_trial_system_attrs(trial) == {}


def test_a_study_that_was_deleted_is_missing(databases):
    searches = Searches(databases)
    storage = searches.storages[0]
    trial = searches.run(storage)
    assert storage.get_trial(trial).number == 0
    searches.truth.delete_study(searches.study)
    with pytest.raises(KeyError):
        storage.get_all_trials(searches.study)
    with pytest.raises(KeyError):
        storage.get_trial(trial)


def test_many_threads_write_their_trials(databases):
    searches = Searches(databases)
    storage = searches.storages[0]

    def run(number):
        for _ in range(3):
            trial = searches.run(storage)
            storage.gather(trial)
            storage.set_trial_param(trial, "x", number / 8, SPACE["x"])
            storage.set_trial_user_attr(trial, "by", number)
            storage.get_all_trials(searches.study)
            storage.write(trial)
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    searches.check()
    assert len(storage.get_all_trials(searches.study)) == 18


def test_other_storages_and_subclasses_are_left_as_they_are(databases):
    class Own(RDBStorage):
        pass

    for storage in (optuna.storages.InMemoryStorage(), Own("sqlite://")):
        assert remembering(storage) is storage
    assert isinstance(remembering(optuna.storages.get_storage(databases[0])), RememberingStorage)


def test_an_attribute_that_is_no_json_is_refused(databases):
    searches = Searches(databases)
    storage = searches.storages[0]
    trial = searches.run(storage)
    with pytest.raises(TypeError, match="JSON"):
        storage.set_trial_user_attr(trial, "a", object())
    with contextlib.suppress(TypeError):
        storage.set_trial_user_attr(trial, "a", {1, 2})
    assert storage.get_trial(trial).user_attrs == {}


def test_what_an_objective_reports_from_another_process_is_seen(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    seen = []

    def objective(trial, x: Float(0, 1)) -> float:
        other = RDBStorage(url)  # as another process opens it
        (stored,) = (each for each in other.get_all_trials(1) if each.number == trial.number)
        other.set_trial_intermediate_value(trial_id(stored), 1, 100.0)
        other.set_trial_user_attr(trial_id(stored), "from", "elsewhere")
        other.engine.dispose()
        raise optuna.TrialPruned

    search = Optimizer(
        objective, 2, 4, storage=url, progress=False, callbacks=[lambda _, trial: seen.append(trial.user_attrs)]
    )
    study = search.run_sync()
    assert [trial.value for trial in study.trials] == [100.0] * 4
    assert seen == [{"from": "elsewhere"}] * 4


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_that_is_ended_elsewhere_while_it_is_sampled_is_left_as_it_is(kind, tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else str(tmp_path / "study.journal")

    class Ending(optuna.samplers.TPESampler):
        def sample_relative(self, study, trial, search_space):
            if trial.number == 3:
                optuna.load_study(study_name="s", storage=open_storage(url)).tell(3, state=TrialState.FAIL)
            return super().sample_relative(study, trial, search_space)

    async def objective(x: Float(0, 1), n: Integer(1, 9)) -> float:
        return x

    search = Optimizer(objective, 2, 8, storage=url, study_name="s", sampler=Ending(seed=1), progress=False)
    study = search.run_sync()
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 5
    assert "Trial 3 was ended by another process before it was run." in caplog.text


def test_a_search_needs_few_statements(tmp_path):
    """They do not grow with the number of running trials. BEGIN and COMMIT are not counted."""
    from sqlalchemy import event

    storage = RDBStorage(f"sqlite:///{tmp_path}/study.db")

    async def objective(x: Float(0, 1), y: Float(0, 1)) -> float:
        return x + y

    def statements(n_trials):
        executed = []
        event.listen(storage.engine, "before_cursor_execute", note := lambda *args: executed.append(args[2]))
        search = Optimizer(objective, 4, n_trials, storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
        search.run_sync()
        event.remove(storage.engine, "before_cursor_execute", note)
        return len(executed)

    assert statements(30) - statements(10) <= 20 * 17
