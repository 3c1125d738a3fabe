import asyncio
import copy
import dataclasses
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import cloudpickle
import flytekit as fl
import optuna
import pytest
from flytekit.configuration import FastSerializationSettings, Image, ImageConfig, SerializationSettings
from flytekit.core.base_task import PythonTask
from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.node_creation import create_node
from flytekit.core.python_auto_container import default_task_resolver
from flytekit.core.python_function_task import AsyncPythonFunctionTask, PythonFunctionTask
from flytekit.core.type_engine import TypeEngine
from flytekit.tools.translator import get_serializable

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Cluster,
    CompilationError,
    EmptySpaceError,
    Float,
    InvalidAnnotationError,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidObjectiveError,
    InvalidOptionError,
    Maximize,
    NotAwaitedError,
    Optimized,
    Optimizer,
    OptunaFlyteError,
    OutOfRangeError,
    SearchRunningError,
    SearchSpace,
    optimize,
    suggest,
)
from optuna_flyte_dsl.options import Options
from tests import user_module
from tests.support.marks import needs_pyflyte
from tests.user_module import plain, search, search_sync, sync_train, train

SETTINGS = SerializationSettings(
    ImageConfig(Image("default", "image", "tag")),
    project="p",
    domain="d",
    version="v",
    fast_serialization_settings=FastSerializationSettings(enabled=True, destination_dir="/root"),
)
POINT = {"lr": 0.01, "depth": 3, "booster": "dart", "dataset": "wine"}


def states(study):
    return {trial.state.name for trial in study.trials}


# What the decorated task is.


def test_it_is_the_task_in_all_but_its_call():
    assert isinstance(train, AsyncPythonFunctionTask)
    assert isinstance(train, PythonTask)
    assert isinstance(sync_train, PythonFunctionTask)
    assert isinstance(train, Optimized)
    assert train.name == "tests.user_module.train"
    assert train.__doc__ == train.task.__doc__
    assert train.python_interface.inputs == plain.python_interface.inputs
    assert train.docs.short_description == "Train a model."
    assert inspect.signature(train.task_function) == inspect.signature(plain.task_function)
    assert train.task.name == train.name


def test_a_decorated_function_keeps_its_name_signature_and_docstring():
    @optimize
    async def objective(trial, x: float = 1.0) -> float:
        """Say something."""
        return x

    assert objective.__name__ == "objective"
    assert objective.__doc__ == "Say something."
    assert str(inspect.signature(objective)) == "(trial, x: float = 1.0) -> float"
    assert asyncio.run(objective.task(None, 3.0)) == 3.0


def test_it_shows_its_space():
    assert isinstance(train.space, SearchSpace)
    assert dict(train.space)["booster"] == Category(["gbtree", "dart"])
    assert list(train.space) == ["lr", "depth", "booster"]


@pytest.mark.parametrize("name", ["lr", "depth", "booster"])
def test_it_serializes_as_the_undecorated_task_does(name):
    from collections import OrderedDict

    ours = get_serializable(OrderedDict(), SETTINGS, train).template
    task = get_serializable(OrderedDict(), SETTINGS, plain).template
    assert ours.interface == task.interface
    assert [a.replace("train", "plain") for a in ours.container.args] == task.container.args
    assert str(ours.interface.inputs[name].type) == str(task.interface.inputs[name].type)


def test_a_trials_pod_loads_it_by_its_resolver_and_runs_the_inner_task():
    arguments = default_task_resolver.loader_args(SETTINGS, train)
    assert arguments == ["task-module", "tests.user_module", "task-name", "train"]
    loaded = default_task_resolver.load_task(arguments)
    assert loaded is train
    context = FlyteContextManager.current_context()
    state = context.new_execution_state().with_params(mode=ExecutionState.Mode.LOCAL_TASK_EXECUTION)
    with FlyteContextManager.with_context(context.with_execution_state(state)) as context:
        literals = TypeEngine.dict_to_literal_map(context, POINT, loaded.python_interface.inputs)
        outputs = loaded.dispatch_execute(context, literals)
    assert outputs.literals["o0"].scalar.primitive.float_value == pytest.approx(0.03 + 8)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_it_can_be_pickled(dumps):
    if dumps is pickle.dumps:
        objective = decorated_function
    else:

        @optimize(n_trials=2)
        @fl.task
        def objective(x: Float(0, 1)) -> float:
            return x

    twin = pickle.loads(dumps(objective))
    assert isinstance(twin, Optimized)
    assert dict(twin.space) == {"x": Float(0, 1)}
    assert len(twin.run_sync().trials) == 2
    assert isinstance(pickle.loads(cloudpickle.dumps(train)), AsyncPythonFunctionTask)


@optimize(n_trials=2)
def decorated_function(x: Float(0, 1)) -> float:
    return x


def test_a_decorated_function_of_no_module_is_pickled_by_value():
    def local(x: Float(0, 1)) -> float:
        return x

    twin = pickle.loads(cloudpickle.dumps(optimize(n_trials=3)(local)))
    assert len(twin.run_sync().trials) == 3
    assert pickle.loads(pickle.dumps(decorated_function)) is decorated_function


def test_its_own_attributes_are_listed():
    assert vars(train) is vars(train.task)
    assert {"space", "study", "run_sync", "n_trials", "task", "python_interface"} <= set(dir(train))


def module_level_objective(x: Float(0, 1)) -> float:
    return x


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_has_options_of_its_own(duplicate):
    twin = duplicate(sync_train)
    twin.n_trials = 1
    assert sync_train.n_trials == 4
    assert len(twin.run_sync().trials) == 1
    assert twin.task is sync_train.task


def test_decorating_twice_decorates_the_task():
    assert optimize(sync_train, n_trials=9).task is sync_train.task
    assert Optimizer(sync_train, 1, 1).objective is sync_train.task


# What its call means, by place.


def test_in_asyncio_a_call_is_a_search():
    study = asyncio.run(train(dataset="digits"))
    assert isinstance(study, optuna.Study)
    assert len(study.trials) == 6
    assert study.direction.name == "MAXIMIZE"
    assert study is train.study


def test_in_an_eager_workflow_a_call_is_a_search():
    assert asyncio.run(search(dataset="digits")) > 10
    assert asyncio.run(search_sync()) == 4


def test_in_a_plain_workflow_a_call_is_refused_with_the_cure():
    @fl.workflow
    def wrong() -> float:
        return sync_train()

    with pytest.raises(Exception, match="is a search, and a `@workflow` cannot wait for one") as caught:
        wrong()
    error = caught.value
    while not isinstance(error, CompilationError):
        error = error.__cause__ or error.__context__
    assert "Call it in an `@fl.eager` workflow, `await sync_train(...)`" in str(error)
    assert "`create_node(sync_train.task, ...)`" in str(error)


def test_create_node_makes_a_node_of_the_inner_task():
    @fl.workflow
    def of_nodes(dataset: str = "wine") -> tuple[float, float]:
        first = create_node(sync_train, x=0.25)
        second = create_node(train, lr=0.01, depth=3, booster="dart", dataset=dataset)
        return first.o0, second.o0

    assert tuple(of_nodes(dataset="x")) == pytest.approx((0.25, 5.03))
    assert [node.flyte_entity.name for node in of_nodes.nodes] == [sync_train.name, train.name]

    @fl.workflow
    def of_the_task() -> float:
        return sync_train.task(x=0.5)

    assert of_the_task() == 0.5


@fl.dynamic
def dynamic_of_nodes(x: float) -> float:
    return create_node(sync_train, x=x).o0


@fl.dynamic
def wrong_dynamic(x: float) -> float:
    return sync_train(x=x)


@pytest.mark.parametrize("search", [Optimizer(sync_train, 1, 1), sync_train.run_sync], ids=["Optimizer", "run_sync"])
def test_a_search_of_any_form_is_refused_in_a_workflow(search):
    @fl.workflow
    def wrong() -> float:
        return search()

    with pytest.raises(Exception, match="is a search, and a `@workflow` cannot wait for one"):
        wrong()


def test_the_wrong_order_of_decorators_is_named_with_its_cure():
    @fl.task
    @optimize(n_trials=4)
    def swapped(x: Float(0, 1)) -> float:
        return x

    with pytest.raises(InvalidObjectiveError, match=r"Put `@optimize` above `@fl\.task`"):
        swapped(x=0.5)


def test_a_class_in_the_place_of_a_marker_is_named_with_its_cure():
    with pytest.raises(
        InvalidMarkerTypeError, match=r"`forgetful`: the annotation of `x` is the class Float. Call it, "
    ):

        @fl.task
        def forgetful(x: Float) -> float:
            return x


@pytest.mark.parametrize("name", ["ntrials", "direction", "sampler"])
def test_an_option_that_cannot_be_assigned_is_refused(name):
    with pytest.raises(InvalidOptionError, match=f"`{name}` cannot be assigned to `sync_train`: only `n_trials`"):
        setattr(sync_train, name, 3)


@pytest.mark.parametrize("dataset", [3, None, ["wine"]])
def test_a_fixed_value_that_flyte_would_refuse_is_refused_at_the_call(dataset):
    with pytest.raises(ArgumentError, match="`train`: `dataset` must be of type str, as the signature says, but got"):
        train(dataset=dataset)


def test_a_parameter_may_be_called_self():
    @optimize(n_trials=2)
    def odd(x: Float(0, 1), self: int = 0) -> float:
        return x + self

    assert odd.run_sync(self=2).best_value >= 2


def test_a_dynamic_workflow_is_a_workflow():
    assert dynamic_of_nodes(x=0.25) == 0.25
    with pytest.raises(Exception, match="is a search, and a `@workflow` cannot wait for one"):
        wrong_dynamic(x=0.25)


def test_map_task_maps_the_inner_task():
    @fl.workflow
    def mapped(xs: list[float]) -> list[float]:
        return fl.map_task(sync_train)(x=xs)

    assert mapped(xs=[0.25, 0.5]) == [0.25, 0.5]
    partial = functools.partial(train, dataset="d", booster="dart", depth=2)
    assert fl.map_task(partial).python_interface.inputs.keys() == {"lr", "dataset", "booster", "depth"}


def test_with_nothing_left_to_search_a_call_is_refused_with_the_cure():
    with pytest.raises(EmptySpaceError, match=r"call `train.task\(\.\.\.\)`"):
        asyncio.run(train(**POINT))


def test_the_inner_task_is_one_plain_call():
    assert asyncio.run(train.task(**POINT)) == pytest.approx(8.03)
    assert sync_train.task(x=0.5) == 0.5


def pyflyte(*arguments):
    root = Path(__file__).parent.parent
    script = "from flytekit.clis.sdk_in_container.pyflyte import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=root, timeout=120, check=False
    )


@needs_pyflyte
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("train", "--lr", "0.01", "--depth", "3", "--booster", "dart"), "8.030000000000001"),
        (("sync_train", "--x", "0.5"), "0.5"),
        (("search_sync",), "4"),
    ],
)
def test_pyflyte_run_runs_the_task_once_and_the_eager_workflow_as_a_search(arguments, printed):
    ran = pyflyte("run", "tests/user_module.py", *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split()[-1] == printed
    is_task = arguments[0] != "search_sync"
    assert ("runs the task" in ran.stderr) is is_task
    assert not is_task or "For a search, run an eager workflow" in ran.stderr


@needs_pyflyte
@pytest.mark.newest
def test_pyflyte_run_without_values_names_them_and_says_how_to_search():
    ran = pyflyte("run", "tests/user_module.py", "train")
    assert ran.returncode != 0
    said = " ".join((ran.stdout + ran.stderr).split())
    assert "`pyflyte run` runs the task `train` once, and needs `--lr`, `--depth`, `--booster`" in said


# Studies.


def test_each_call_has_a_study_of_its_own():
    first, second = sync_train.run_sync(), sync_train.run_sync()
    assert first is not second
    assert len(first.trials) == len(second.trials) == 4
    assert sync_train.study is second


def test_searches_at_the_same_time_do_not_mix():
    async def main():
        return await asyncio.gather(train(dataset="a"), train(dataset="bb"))

    first, second = asyncio.run(main())
    assert (len(first.trials), len(second.trials)) == (6, 6)
    assert first is not second


def test_a_given_study_is_added_to():
    study = optuna.create_study()

    @optimize(n_trials=3, study=study)
    def objective(trial):
        return 1.0

    for _ in range(2):
        assert objective.run_sync() is study
    assert len(study.trials) == 6


def test_a_function_makes_a_study_for_each_call():
    made = []

    def make():
        made.append(optuna.create_study(direction="maximize"))
        return made[-1]

    @optimize(n_trials=2, study=make)
    def objective(trial):
        return 1.0

    assert made == []
    assert objective.run_sync() is made[0]
    assert objective.run_sync() is made[1]


def test_the_study_of_the_first_call_can_be_prepared():
    @optimize(n_trials=2)
    def objective(x: Float(0, 1)) -> float:
        return x

    objective.study.enqueue_trial({"x": 0.125})
    prepared = objective.study
    assert objective.run_sync() is prepared
    assert prepared.trials[0].params == {"x": 0.125}
    assert objective.run_sync() is not prepared


def test_no_study_is_made_at_import(monkeypatch):
    monkeypatch.setattr(optuna, "create_study", lambda **_: pytest.fail("a study was made"))
    optimize(module_level_objective)
    Optimizer(module_level_objective, 1, 1)


# Options.


def test_limits_can_be_assigned_until_it_runs():
    async def main():
        @optimize
        async def objective(x: Float(0, 1)) -> float:
            for name in ("n_trials", "concurrency", "delay"):
                with pytest.raises(SearchRunningError, match=f"`{name}` of `objective` cannot be assigned while"):
                    setattr(objective, name, 2)
            return x

        objective.n_trials, objective.concurrency, objective.delay = 5, 2, 0.001
        study = await objective()
        assert (objective.n_trials, objective.concurrency, objective.delay) == (5, 2, 0.001)
        objective.n_trials = 7
        return len(study.trials), states(study), len((await objective()).trials)

    assert asyncio.run(main()) == (5, {"COMPLETE"}, 7)


def test_an_assigned_limit_is_checked():
    with pytest.raises(InvalidOptionError, match="`n_trials` must be an integer greater than 0, but got 0"):
        sync_train.n_trials = 0


def test_a_call_takes_fixed_values_suggestions_and_positions():
    study = asyncio.run(train(suggest.float(0.2, 0.3), 5, dataset="x"))
    assert all(0.2 <= trial.params["lr"] <= 0.3 for trial in study.trials)
    assert study.trials[0].params.keys() == {"lr", "booster"}


def test_a_wrong_argument_is_refused_before_any_trial():
    before = train.study
    with pytest.raises(ArgumentError, match="`train` has no parameter `epochs`"):
        train(epochs=3)
    assert train.study is before


def test_bare_and_positional_forms_are_the_peers():
    assert (optimize(module_level_objective).n_trials, optimize(module_level_objective).concurrency) == (1, 1)
    study = optuna.create_study()
    assert optimize(module_level_objective, 2, 3, study).concurrency == 2
    assert optimize(None, 2, 3)(module_level_objective).n_trials == 3
    assert optimize()(module_level_objective).n_trials == 1


def test_it_is_shown_as_what_it_is():
    assert "search over sync_train" in repr(sync_train)
    assert user_module.train is train


async def async_callback_of_trials(study, trial):
    raise NotImplementedError


@optimize(n_trials=2, progress=False)
@fl.task
def mixed(c: Category(["a", None]), d: Category([1, 2.5]) = 1) -> float:
    return float(d)


def test_a_category_of_several_types_is_a_union_to_pyflyte_run():
    assert typing.get_args(typing.get_args(mixed.python_interface.inputs["c"])[0]) == (str, type(None))
    assert mixed.space["d"] == Category([1, 2.5])
    assert len(mixed.run_sync().trials) == 2


def test_the_class_itself_can_be_inspected():
    assert typing.get_type_hints(Optimized) == inspect.get_annotations(Optimized) == {}
    assert "lr" in train.__annotations__ or train.task_function.__annotations__
    assert list(inspect.signature(train.task_function).parameters)[:2] == ["lr", "depth"]


def test_a_task_that_leaves_its_trial_out_of_its_cache_is_refused_with_the_cure():
    with pytest.raises(InvalidObjectiveError, match="Drop `trial` from `cache_ignore_input_vars`"):

        @optimize
        @fl.task(cache=True, cache_version="1", cache_ignore_input_vars=("trial",))
        def test_task(trial: optuna.Trial, x: Float(0, 1)) -> float:
            return 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": [async_callback_of_trials]}, "must be a sync function, but .* is async"),
        ({"callbacks": [lambda study: None]}, "must take a study and a trial, but .*lambda.* does not: too many"),
        ({"callbacks": print}, r"Write `callbacks=\[function\]`"),
        ({"initial_points": [{"lrr": 0.1}]}, "has no parameter `lrr`, named in an initial point; it has `lr`"),
    ],
)
def test_more_mistakes_are_named_at_decoration(options, message):
    with pytest.raises(OptunaFlyteError, match=message):
        optimize(train, n_trials=3, **options)


def test_a_misspelt_option_is_named_with_the_nearest_one():
    with pytest.raises(
        InvalidOptionError, match=r"`optimize` has no option `concurency`. Did you mean `concurrency`\?"
    ):
        optimize(concurency=4)
    with pytest.raises(InvalidOptionError, match=r"`Optimizer` has no option `n_trial`. Did you mean `n_trials`\?"):
        Optimizer(lambda trial: 0.0, concurrency=1, n_trial=4)
    two = r"`optimize` has no option `n_jobs` and no option `catc`. Did you mean `concurrency`\? Did you mean `catch`\?"
    with pytest.raises(InvalidOptionError, match=two):
        optimize(n_jobs=2, catc=())
    with pytest.raises(InvalidOptionError, match=r"`optimize` has no option `zzz`\. It has `concurrency`, `n_trials`"):
        optimize(zzz=4)


@pytest.mark.parametrize("name", ["n_trials", "concurrency", "seed"])
def test_a_class_is_no_number(name):
    with pytest.raises(InvalidOptionError, match=f"`{name}` must be an integer"):
        optimize(**{name: int})


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(Options)])
def test_an_option_at_the_call_is_named_with_its_cure(option):
    for each in (train, optimize(lambda trial: 0.0)):
        with pytest.raises(ArgumentError, match=rf"an option of one search.*`.*\.with_options\({option}=...\)\(...\)`"):
            each.run_sync(**{option: None})


def test_an_objective_with_other_options_leaves_the_first_as_it_is():
    @optimize(n_trials=2, seed=1, progress=False)
    def objective(x: Float(0, 1), y: float = 0.0) -> Maximize:
        return x + y

    other = objective.with_options(n_trials=3)
    assert len(other.run_sync(y=1.0).trials) == 3
    assert (other.study.direction.name, other.study.best_value >= 1.0) == ("MAXIMIZE", True)
    assert other.study.trials[0].params == objective.run_sync().trials[0].params  # the seed stays
    assert (len(objective.study.trials), objective.n_trials, other.task) == (2, 2, objective.task)
    assert len(objective.with_options(2, 5).run_sync().trials) == 5
    shown = inspect.signature(objective.with_options).parameters
    assert list(shown) == [field.name for field in dataclasses.fields(Options)]
    assert {parameter.default for parameter in shown.values()} == {...}


def test_an_optimizer_with_other_options_has_a_study_of_its_own(tmp_path):
    optimizer = Optimizer(lambda trial: trial.suggest_float("x", 0, 1), 1, 2, progress=False)
    study = optimizer.run_sync()
    other = optimizer.with_options(n_trials=3)
    assert (len(other.run_sync().trials), len(study.trials), optimizer.study) == (3, 2, study)
    kept = other.with_options(storage=tmp_path / "s.journal", study_name="kept", resume=True)
    assert [len(kept.run_sync().trials), len(kept.with_options(n_trials=4).run_sync().trials)] == [3, 4]


def test_other_options_are_checked_as_those_of_optimize_are():
    with pytest.raises(InvalidOptionError, match=r"`with_options` has no option `n_trial`. Did you mean `n_trials`\?"):
        train.with_options(n_trial=3)
    with pytest.raises(InvalidOptionError, match="`n_trials` must be an integer greater than 0"):
        train.with_options(n_trials=0)
    with pytest.raises(InvalidOptionError, match="`takeover=True` needs `resume=True`"):
        train.with_options(takeover=True)
    with pytest.raises(InvalidOptionError, match=r"Write `train.with_options\(seed=...\)`"):
        train.seed = 3


def test_a_task_with_a_positional_only_parameter_is_refused_at_decoration():
    @fl.task
    def objective(x: float, /, y: float) -> float:
        return x + y

    for make in (optimize, lambda task: Optimizer(task, 1, 1)):
        with pytest.raises(InvalidAnnotationError, match=r"`x` is positional-only.*Drop the `/`"):
            make(objective)


def test_a_value_of_a_wrong_type_is_not_told_to_be_passed_all_the_same():
    with pytest.raises(OutOfRangeError) as caught:
        train.run_sync(depth="3")
    assert "Fixed" not in str(caught.value)


def test_a_default_of_none_needs_an_optional():
    with pytest.raises(InvalidMarkerError, match="the default of `x` must lie within its marker"):

        @optimize
        def objective(x: Float(0, 1) = None) -> float:
            return x


def test_a_call_that_is_used_before_it_was_awaited_says_what_to_write():
    @optimize(n_trials=2, progress=False)
    async def train(x: Float(0, 1)) -> float:
        return x

    search = train()
    with pytest.raises(NotAwaitedError, match=r"has no `best_value`. Write `study = await .*run_sync\(\.\.\.\)`"):
        _ = search.best_value
    assert asyncio.iscoroutine(search)
    assert len(asyncio.run(search).trials) == 2
    with pytest.warns(RuntimeWarning, match=r"`train\(\.\.\.\)` was never awaited.* Write `await train"):
        train()


def test_a_call_that_was_never_awaited_warns_once_however_it_is_freed():
    @optimize(n_trials=2, progress=False)
    async def train(x: Float(0, 1)) -> float:
        return x

    class Holder:
        pass

    holder = Holder()
    holder.itself, holder.search = holder, train()
    del holder
    with pytest.warns(RuntimeWarning) as warned:
        gc.collect()
    said = [str(each.message) for each in warned if issubclass(each.category, RuntimeWarning)]  # not those of others
    assert [each.partition(" was")[0] for each in said] == ["`train(...)`"]


def test_a_call_that_is_awaited_twice_says_what_to_write():
    @optimize(n_trials=2, progress=False)
    async def train(x: Float(0, 1)) -> float:
        return x

    async def twice():
        search = train()
        await search
        await search

    with pytest.raises(RuntimeError, match=r"`train\(\.\.\.\)` was awaited already.*call `train\(\.\.\.\)` again"):
        asyncio.run(twice())


def test_an_option_that_cannot_be_assigned_is_given_otherwise():
    @optimize
    def train(x: Float(0, 1)) -> float:
        return x

    with pytest.raises(InvalidOptionError, match=r"only .* can\. Write `train\.with_options\(seed=\.\.\.\)`"):
        train.seed = 1
    with pytest.raises(InvalidOptionError, match=r"only .* can\. Did you mean `n_trials`\?$"):
        train.ntrials = 1


def test_an_annotation_of_a_task_is_named_in_its_error():
    with pytest.raises(InvalidAnnotationError, match="`train`: the annotation of `depth` says int"):

        @optimize
        @fl.task
        def train(x: Float(0, 1), depth: typing.Annotated[int, Float(1, 4)]) -> float:
            return x


def test_a_marker_as_a_default_is_refused():
    def train(x: float = Float(0, 1)) -> float:
        return x

    with pytest.raises(InvalidAnnotationError, match=r"the default of `x` is the marker Float\(0, 1\). Write .*`x: Fl"):
        optimize(train)


WRONG_ORDER = """
import flytekit as fl
from optuna_flyte_dsl import Float, optimize

@fl.task
@optimize(n_trials=2)
def wrong(x: Float(0, 1)) -> float:
    return x

wrong(x=0.5)
"""


@pytest.mark.newest
def test_decorators_in_the_wrong_order_are_named_in_a_script_too(tmp_path):
    (tmp_path / "script.py").write_text(WRONG_ORDER)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    said = " ".join(done.stderr.replace("│", " ").split())  # flytekit frames its tracebacks
    assert "Put `@optimize` above `@fl.task`." in said


def test_what_belongs_to_the_study_or_is_called_otherwise_is_named_with_the_cure():
    def bowl(x: Float(0, 1)) -> float:
        return x

    for made in (optimize(bowl, n_trials=2, progress=False), Optimizer(bowl, 1, 2, progress=False)):
        with pytest.raises(AttributeError, match=r"`best_params` belongs to its study. Write `bowl.study.best_params`"):
            made.best_params  # noqa: B018
        with pytest.raises(AttributeError, match=r"`bowl` has no `run`. Write `bowl.run_sync\(...\)`, or `await bowl"):
            made.run()
        with pytest.raises(AttributeError, match=r"has no attribute 'no_such_thing'"):
            made.no_such_thing  # noqa: B018
        assert not hasattr(made, "__no_such_thing__")


def test_a_call_that_is_never_awaited_changes_no_study():
    @optimize(n_trials=2, progress=False)
    def bowl(x: Float(0, 1)) -> float:
        return x

    study = bowl.run_sync()
    forgotten = bowl()
    assert bowl.study is study, "the study of the latest call that has begun"
    assert len(asyncio.run(forgotten).trials) == 2
    assert bowl.study is not study


@pytest.mark.parametrize("annotation", [Maximize(), optuna.study.StudyDirection.MAXIMIZE, 0.5, Float(0, 1)])
def test_a_return_annotation_that_is_a_value_is_refused(annotation):
    def bowl(x: Float(0, 1)):
        return x

    bowl.__annotations__["return"] = annotation
    with pytest.raises(InvalidObjectiveError, match=r"`bowl` must return a float.* Return `float`, `Minimize`"):
        optimize(bowl)


def test_a_pruner_without_a_trial_to_prune_is_refused():
    with pytest.raises(InvalidOptionError, match=r"`pruner` has no effect, because `bowl` cannot report.*Trial`"):

        @optimize(pruner=optuna.pruners.MedianPruner)
        def bowl(x: Float(0, 1)) -> float:
            return x


def test_more_at_once_than_the_one_trial_of_a_search_without_n_trials_is_told(warned):
    @optimize(concurrency=4)
    def bowl(x: Float(0, 1)) -> float:
        return x

    assert warned() == ["`bowl` will run one trial, because `n_trials` is 1. Give `n_trials`, beside `concurrency=4`."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mem": "4Gi"}, r"`Cluster` has no option `mem`. Resources belong to the task: `@fl.task\(requests="),
        ({"interuptible": True}, r"`Cluster` has no option `interuptible`. Did you mean `interruptible`\?"),
        ({"mem": 1, "lables": {}}, r"Resources belong to the task.* Did you mean `labels`\?$"),
    ],
)
def test_an_unknown_option_of_a_cluster_is_named_with_the_cure(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        Cluster(**options)


def test_the_name_of_a_search_stands_for_it_in_texts():
    assert str(sync_train) == repr(sync_train) == "<search over sync_train>"
    with pytest.raises(AttributeError, match=r"<search over sync_train> has no .*'n_trial'. Did you mean `n_tri"):
        _ = sync_train.n_trial


def test_the_trial_is_given_by_the_search():
    @optimize(n_trials=1, progress=False)
    def train(trial: optuna.Trial, x: Float(0, 1)) -> float:
        return x

    with pytest.raises(ArgumentError, match="`train`: the search itself gives `trial`"):
        train.run_sync(trial=3)


def test_an_optional_trial_of_a_task_is_refused():
    @fl.task
    def train(x: Float(0, 1), trial: typing.Optional[optuna.Trial] = None) -> float:
        return x

    with pytest.raises(
        InvalidObjectiveError, match=r"a task's trial must have the type .* Write `trial: optuna.Trial`"
    ):
        optimize(train)
