import asyncio
import concurrent.futures
import copy
import inspect
import subprocess
import sys
import threading

import cloudpickle
import optuna
import pytest

from optuna_flyte_dsl import (
    ArgumentError,
    AutoSampler,
    DirectionError,
    EmptySpaceError,
    Float,
    Integer,
    InvalidOptionError,
    Maximize,
    ObjectiveValueError,
    Optimizer,
    OutOfRangeError,
    SearchRunningError,
    optimize,
    suggest,
)


def marked(x: Float(0, 1), n: int = 3) -> float:
    return x * n


def of_trial(trial: optuna.Trial, scale: float = 1.0):
    return scale * trial.suggest_float("x", 0, 1)


def states(study):
    return {trial.state.name for trial in study.trials}


def test_an_optimizer_has_one_study_and_a_second_call_adds_to_it():
    optimizer = Optimizer(marked, concurrency=2, n_trials=3)
    first = optimizer.run_sync()
    assert optimizer.run_sync(n=4) is first
    assert optimizer.study is first
    assert len(first.trials) == 6


def test_a_parameter_too_few_or_too_many_is_named():
    with pytest.raises(InvalidOptionError, match=r"`Optimizer` needs `concurrency` and `n_trials`, as in `Opt"):
        Optimizer(marked)
    with pytest.raises(InvalidOptionError, match=r"`Optimizer` needs `n_trials`, as in"):
        Optimizer(marked, concurrency=2)
    with pytest.raises(TypeError, match=r"optimize\(\) takes from 1 to 5 positional arguments"):
        optimize(1, 2, 3, 4, 5, 6)


def test_its_study_is_made_on_first_use():
    made = []

    def make():
        made.append(optuna.create_study())
        return made[-1]

    optimizer = Optimizer(marked, 1, 2, make)
    assert made == []
    assert optimizer.study is made[0]
    assert optimizer.run_sync() is made[0]
    assert len(made) == 1


def test_positional_arguments_are_in_the_peers_order():
    study = optuna.create_study()
    optimizer = Optimizer(marked, 2, 3, study, 0.001)
    assert (optimizer.objective, optimizer.concurrency, optimizer.n_trials) == (marked, 2, 3)
    assert (optimizer.study, optimizer.delay) == (study, 0.001)
    assert list(optimizer.space) == ["x"]
    assert repr(optimizer) == "Optimizer(marked, concurrency=2, n_trials=3)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "`concurrency` must be an integer greater than 0, but got 0."),
        ({"concurrency": "abc"}, "`concurrency` must be an integer greater than 0, but got 'abc'."),
        ({"concurrency": True}, "`concurrency` must be an integer greater than 0, but got True."),
        ({"n_trials": -10}, "`n_trials` must be an integer greater than 0, but got -10."),
        ({"n_trials": 2.0}, "`n_trials` must be an integer greater than 0, but got 2.0."),
        ({"delay": -1}, "`delay` must be a number of seconds, 0 or more, but got -1."),
        ({"delay": "abc"}, "`delay` must be a number of seconds, 0 or more, but got 'abc'."),
        ({"delay": float("nan")}, "`delay` must be a number of seconds, 0 or more, but got nan."),
        (
            {"study": "abc"},
            "`study` must be an optuna.Study, or a function that makes one, but got 'abc'. "
            "Write `study=optuna.create_study(...)`.",
        ),
        (
            {"direction": "minimize", "directions": ["minimize"]},
            "Give `direction` or `directions`, not both: got 'minimize' and ['minimize']. "
            "`direction` is for one objective, `directions` for several.",
        ),
        (
            {"direction": "up"},
            '`direction`, and each of `directions`, must be "minimize" or "maximize", but got \'up\'.',
        ),
        (
            {"direction": ["minimize"]},
            '`direction` must be "minimize" or "maximize", but got [\'minimize\']. '
            "For several objectives, write `directions=[...]`.",
        ),
        (
            {"directions": "minimize"},
            "`directions` must be a list with a direction for each objective, but got 'minimize'. "
            'Write `directions=["maximize", "minimize"]`.',
        ),
        (
            {"sampler": "tpe"},
            "`sampler` must be \"auto\", a sampler of Optuna's, or a function that makes one, but got 'tpe'. "
            'Write `sampler="auto"`, or `sampler=optuna.samplers.TPESampler`.',
        ),
        ({"sampler": "cma-es"}, '`sampler="auto"`, or `sampler=optuna.samplers.CmaEsSampler`.'),
        ({"sampler": "NSGAIISampler"}, '`sampler="auto"`, or `sampler=optuna.samplers.NSGAIISampler`.'),
        ({"sampler": "Auto"}, '`sampler="auto"`, or `sampler=optuna.samplers.TPESampler`.'),
        ({"sampler": int}, "`sampler` must be a sampler of Optuna's, but got the class <class 'int'>."),
        ({"seed": 1.5}, "`seed` must be an integer from 0 to 2**32 - 1, but got 1.5."),
        ({"seed": -1}, "`seed` must be an integer from 0 to 2**32 - 1, but got -1."),
        (
            {"seed": 1, "sampler": optuna.samplers.RandomSampler()},
            "`seed=1` and `sampler=RandomSampler(...)` contradict each other: a sampler that is made already has its "
            "seed. Give the seed to the sampler, or give its class.",
        ),
        (
            {"seed": 1, "study": optuna.create_study()},
            "`seed` and `study` were both given, but a study has its own sampler. Give it to "
            "`optuna.create_study(sampler=...)`, or drop `study`.",
        ),
        ({"callbacks": [3]}, "`callbacks` must be a list of functions that take a study and a trial, but got [3]."),
        ({"initial_points": {"x": 1}}, "`initial_points` must be a list of dicts, such as [{'x': 0.5}], but got"),
        (
            {"initial_points": [{"x": 0.1}] * 6},
            "`initial_points` holds 6 points, more than `n_trials=5`. Raise `n_trials`, or drop some.",
        ),
        ({"progress": "bar"}, "`progress` must be True or False, but got 'bar'."),
    ],
)
def test_a_wrong_option_is_refused_at_decoration(options, message):
    with pytest.raises(InvalidOptionError) as caught:
        optimize(**{"concurrency": 2, "n_trials": 5, **options})(marked)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_function_that_makes_no_study_or_sampler_is_named():
    with pytest.raises(InvalidOptionError, match=r"`study` must make an optuna\.Study, but it made 3"):
        Optimizer(marked, 1, 1, lambda: 3).run_sync()
    with pytest.raises(InvalidOptionError, match="`sampler` must make a sampler of Optuna's, but it made 3"):
        Optimizer(marked, 1, 1, sampler=lambda: 3).run_sync()
    with pytest.raises(InvalidOptionError, match="takes no `seed`"):
        Optimizer(marked, 1, 1, sampler=lambda: 3, seed=1).run_sync()


def test_a_made_studys_directions_are_checked_at_the_call():
    optimizer = Optimizer(marked, 1, 1, lambda: optuna.create_study(directions=["minimize", "maximize"]))
    with pytest.raises(DirectionError, match="returns 1 objective, but the study has 2 directions"):
        optimizer.run_sync()


def test_a_seed_makes_a_search_repeat():
    def params(seed, sampler=None):
        study = Optimizer(marked, 1, 15, seed=seed, sampler=sampler).run_sync()
        return [trial.params for trial in study.trials]

    assert params(3) == params(3)
    assert params(3) != params(4)
    assert params(3, optuna.samplers.RandomSampler) == params(3, optuna.samplers.RandomSampler)


def test_each_search_has_a_sampler_of_its_own_where_a_callable_makes_it():
    made = []

    def make():
        made.append(optuna.samplers.RandomSampler(seed=1))
        return made[-1]

    objective = optimize(n_trials=2, sampler=make)(marked)
    assert objective.run_sync().sampler is made[0]
    assert objective.run_sync().sampler is made[1]
    assert objective.run_sync().sampler is not objective.run_sync().sampler


def test_the_default_sampler_is_an_auto_sampler_whatever_stands_for_it():
    for given in ({}, {"sampler": None}, {"sampler": "auto"}):
        assert type(Optimizer(marked, 4, 2, seed=1, **given).study.sampler) is AutoSampler


def test_directions_make_the_study():
    assert Optimizer(marked, 1, 1, direction="maximize").study.direction.name == "MAXIMIZE"
    study = optimize(directions=["maximize", "minimize"], n_trials=2)(lambda trial: (1.0, 2.0)).run_sync()
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_the_fields_of_a_named_tuple_name_the_metrics():
    from typing import NamedTuple

    class Quality(NamedTuple):
        accuracy: Maximize
        seconds: float

    def objective(x: Float(0, 1)) -> Quality:
        return Quality(x, x)

    study = Optimizer(objective, 1, 2, directions=["maximize", "minimize"]).run_sync()
    assert study.metric_names == ["accuracy", "seconds"]
    given = optuna.create_study(directions=["maximize", "minimize"])
    assert Optimizer(objective, 1, 2, given).run_sync().metric_names == ["accuracy", "seconds"]


def test_the_number_of_values_is_checked_at_the_first_return_where_no_annotation_says_it():
    optimizer = Optimizer(lambda trial: (1.0, 2.0), 2, 10)
    with pytest.raises(ObjectiveValueError, match=r"returned 2 values, \(1.0, 2.0\), but the study has 1 direction"):
        optimizer.run_sync()
    assert states(optimizer.study) == {"FAIL"}


def test_a_call_is_checked_before_any_trial():
    optimizer = Optimizer(marked, 1, 1, initial_points=[{"x": 0.5}])
    for arguments, error in [
        ({"y": 1}, ArgumentError),
        ({"x": 3}, OutOfRangeError),
        ({"x": 0.5}, EmptySpaceError),
        ({"x": suggest.float(2, 3)}, OutOfRangeError),  # its initial point is not in there
    ]:
        with pytest.raises(error):
            optimizer(**arguments)
    assert optimizer.study.trials == []


def test_a_function_with_a_trial_needs_its_other_arguments():
    def objective(trial, data):
        return 1.0

    with pytest.raises(ArgumentError, match="`objective` needs a value for `data`"):
        Optimizer(objective, 1, 1).run_sync()


def test_a_function_with_a_trial_takes_suggestions_too():
    def objective(trial, x, n: Integer(1, 3), params):
        assert trial.params.keys() == {"x", "n", "params.y"}
        return x * n + params["y"]

    study = Optimizer(objective, 1, 4).run_sync(x=suggest.float(0, 1), params={"y": Float(2, 3)})
    assert states(study) == {"COMPLETE"}


def test_initial_points_are_tried_first():
    study = Optimizer(marked, 1, 3, initial_points=[{"x": 0.25}]).run_sync()
    assert study.trials[0].params == {"x": 0.25}


def test_run_sync_works_inside_a_running_loop_too():
    async def main():
        return Optimizer(marked, 2, 4).run_sync(n=2), optimize(n_trials=3)(marked).run_sync()

    first, second = asyncio.run(main())
    assert (len(first.trials), len(second.trials)) == (4, 3)


def test_run_sync_raises_what_the_search_raises_wherever_it_runs():
    async def main():
        Optimizer(lambda trial: "x", 1, 1).run_sync()

    with pytest.raises(ObjectiveValueError) as caught:
        asyncio.run(main())
    assert caught.value.__context__ is None
    with pytest.raises(ObjectiveValueError) as caught:
        Optimizer(lambda trial: "x", 1, 1).run_sync()
    assert caught.value.__context__ is None


INTERRUPTED = """
import asyncio, os, signal, threading
import optuna
from optuna_flyte_dsl import Optimizer

released = threading.Event()

def objective(trial):
    if trial.number == 2:
        os.kill(os.getpid(), signal.SIGINT)
    released.wait(0.05 if trial.number < 2 else 5)
    return 0.0

optimizer = Optimizer(objective, concurrency=2, n_trials=1000, progress=False)

async def main():
    optimizer.run_sync()

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print(len(optimizer.study.trials) < 1000, all(trial.state.is_finished() for trial in optimizer.study.trials))
"""


def test_ctrl_c_ends_run_sync_inside_a_running_loop():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True True", done.stderr


def test_the_signature_of_an_optimizer_is_that_of_its_class_only():
    class Sub(Optimizer):
        def __init__(self, extra):
            super().__init__(lambda trial: 0.0, 1, 2)

    assert list(inspect.signature(Sub).parameters) == ["extra"]
    assert list(inspect.signature(Sub(1)).parameters) == ["args", "kwargs"]
    assert list(inspect.signature(Optimizer).parameters)[:3] == ["objective", "concurrency", "n_trials"]


def test_a_list_of_directions_is_copied():
    directions = ["maximize"]
    optimizer = Optimizer(lambda trial: 0.0, 1, 1, directions=directions, progress=False)
    directions[0] = "neither"
    assert optimizer.run_sync().direction is optuna.study.StudyDirection.MAXIMIZE


def test_an_interrupt_of_run_sync_inside_a_loop_ends_the_search(monkeypatch):
    started = threading.Event()
    optimizer = Optimizer(hanging := Hanging(started), 1, 1)
    wait = concurrent.futures.wait

    def interrupted(futures, timeout=None):
        if not hanging.interrupted:
            assert started.wait(30)
            hanging.interrupted = True
            raise KeyboardInterrupt
        return wait(futures, timeout)

    async def main():
        monkeypatch.setattr(concurrent.futures, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.run_sync()

    asyncio.run(main())
    assert states(optimizer.study) == {"FAIL"}


class Hanging:
    def __init__(self, started):
        self.started = started
        self.interrupted = False

    async def __call__(self, trial):
        self.started.set()
        await asyncio.Event().wait()


def test_options_can_be_assigned_until_it_runs():
    optimizer = Optimizer(of_trial, 1, 1)
    optimizer.n_trials, optimizer.concurrency, optimizer.delay = 4, 2, 0.001
    assert len(optimizer.run_sync().trials) == 4

    def objective(trial):
        optimizer.n_trials = 3

    optimizer = Optimizer(objective, 1, 1)
    optimizer.run_sync()
    assert "SearchRunningError" in optimizer.study.trials[0].user_attrs["optuna_flyte_dsl:error"]
    assert issubclass(SearchRunningError, RuntimeError)


@pytest.mark.parametrize("url", [True, False])
def test_a_study_in_a_database_is_used(tmp_path, url):
    def make():
        return optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s", load_if_exists=True)

    optimizer = Optimizer(of_trial, 3, 7, make if url else make())
    assert states(optimizer.run_sync(scale=2.0)) == {"COMPLETE"}
    assert len(make().trials) == 7


def test_the_first_trial_starts_at_once_however_many_are_asked_for():
    import tracemalloc

    peak = []

    def objective(trial):
        peak.append(tracemalloc.get_traced_memory()[1])
        trial.study.stop()
        return 1.0

    optimizer = Optimizer(objective, 16, 1_000_000)
    _ = optimizer.study
    tracemalloc.start()
    try:
        study = optimizer.run_sync()
    finally:
        tracemalloc.stop()
    assert peak[0] < 20e6
    assert len(study.trials) <= 16


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda each: cloudpickle.loads(cloudpickle.dumps(each))])
def test_an_optimizer_can_be_cloned(clone):
    def bowl(trial):
        return trial.suggest_float("x", -1, 1) ** 2

    original = Optimizer(bowl, 1, 2, seed=1, progress=False)
    original.run_sync()
    cloned = clone(original)
    assert cloned.run_sync().trials[0].params == original.study.trials[0].params
    assert len(cloned.study.trials) == 2
    assert copy.copy(original).study is original.study
