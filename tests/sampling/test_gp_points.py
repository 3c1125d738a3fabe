"""Which points of a GPSampler a trial gets, and what they are sampled from."""

import asyncio
import concurrent.futures
import itertools
import pickle

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, optimize
from optuna_flyte_dsl._compat.optuna import cached_trial
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.sampling import auto_sampler, gp_points, time_budget
from optuna_flyte_dsl.sampling.gp_points import GPPoints, Patience, make_gp
from optuna_flyte_dsl.sampling.sampler_process import Row, SampledPoint, SamplerProcessError
from optuna_flyte_dsl.sampling.time_budget import TimeBudget
from optuna_flyte_dsl.study.feasibility import IS_OPTUNA_4

SPACE = {"x": FloatDistribution(0.0, 1.0)}


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


clock = Clock()


class PatienceOfTheClock(Patience):
    """Does not really wait."""

    def wait(self, future, seconds):
        if not future.done():
            clock.now += seconds
        return super().wait(future, 0)


class Process:
    """Stands for a `SamplerProcess`. It answers at once, or when the test says so."""

    is_ready = True
    is_busy = False
    is_closed = False

    def __init__(self):
        self.requests = []
        self.answers = []
        self.is_quick = True

    def submit(self, request):
        self.requests.append(request)
        self.answers.append(concurrent.futures.Future())
        if self.is_quick:
            self.answer(len(self.answers) - 1)
        return self.answers[-1]

    def close(self):
        self.is_closed = True

    def answer(self, index, seconds=0.2):
        """Answer a request. The points are 0.001, 0.002 and so on."""
        index %= len(self.answers)
        point = (round(0.001 * (index + 1), 3), *[1.0] * (len(self.requests[index].space) - 1))
        self.answers[index].set_result(SampledPoint(point, seconds))


@pytest.fixture
def process(monkeypatch):
    process = Process()
    monkeypatch.setattr(gp_points, "sampler_process", lambda **_: process)
    monkeypatch.setattr(gp_points, "gp_knows_running_trials", lambda: True)
    monkeypatch.setattr(gp_points, "store_point", lambda *_: None)
    monkeypatch.setattr(gp_points, "_ids", itertools.count())
    monkeypatch.setattr(time_budget, "time", clock)
    monkeypatch.setattr(clock, "now", 0.0)
    return process


class Search:
    """A search that asks for points. A trial that gets none is a random one."""

    def __init__(self, n_running, seconds, *, share=0.03, n_objectives=1):
        directions = ["minimize"] * n_objectives
        self.study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
        self.points = GPPoints(1, TimeBudget(share), has_constraints=False)
        self.points.patience = PatienceOfTheClock()
        self.n_running, self.seconds = n_running, seconds
        self.running = []

    def ask(self, space=SPACE):
        """Ask for a trial. Return its point of a GPSampler; `None` if it gets none."""
        trial = self.study.ask()
        frozen = cached_trial(trial)
        self.points.budget.begin_ask(len(self.running))
        params = None
        if self.points.has_point(self.study, frozen, space):
            params = self.points.take(self.study, frozen, space)
        found = params and params["x"]
        trial.suggest_float("x", *((found, found) if found else (0, 1)))
        self.points.ask_ahead(self.study, frozen, space, trial.params)
        self.running.append(trial)
        return found

    def tell(self, n=1):
        """Let some trials end, one after the other."""
        for _ in range(n):
            clock.now += self.seconds / self.n_running
            self.points.budget.pass_time(len(self.running))
            self.study.tell(self.running.pop(0), [0.0] * len(self.study.directions))

    def run(self, n):
        """Run trials. Return the points of the GPSampler that they got."""
        found = []
        while len(self.running) < self.n_running:
            found.append(self.ask())
        for _ in range(n - len(found)):
            self.tell()
            found.append(self.ask())
        return [each for each in found if each is not None]


def test_each_trial_waits_where_there_is_no_limit(process):
    search = Search(16, 1.0, share=None)
    assert [search.ask() for _ in range(5)] == [0.001, 0.002, 0.003, 0.004, 0.005]
    assert len(process.requests) == 5


def test_a_point_that_never_comes_is_an_error_where_there_is_no_limit(process, monkeypatch):
    monkeypatch.setattr(pauses, "sampler_patience", 7.0)
    process.is_quick = False
    with pytest.raises(SamplerProcessError, match=r"^it has sent no point for 7 s$"):
        Search(1, 1.0, share=None).ask()
    assert process.is_closed


def test_a_point_sampled_ahead_that_never_comes_is_an_error(process, monkeypatch):
    process.is_quick = False
    search = Search(16, 1.0)
    search.run(100)
    assert not process.is_closed
    monkeypatch.setattr(pauses, "sampler_patience", 0.0)
    search.tell()
    with pytest.raises(SamplerProcessError, match="it has sent no point for 0 s"):
        search.ask()
    assert process.is_closed


def test_a_search_that_ends_waits_for_no_point(process, monkeypatch):
    process.is_quick = False
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: True)
    monkeypatch.setattr(auto_sampler, "gp_knows_running_trials", lambda: True)

    async def objective(x: Float(0, 1)) -> float:
        return x

    study = optimize(objective, n_trials=50, concurrency=1, seed=1, timeout=0.5).run_sync()
    assert len(process.requests) == 1
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 10 + [TrialState.FAIL]
    assert not study.sampler._points.patience.has_ended  # it waits in the next search

    async def interrupted():
        running = asyncio.ensure_future(optimize(objective, n_trials=50, concurrency=2, seed=1, deterministic=True)())
        while len(process.requests) == 1:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(interrupted())


def test_patience_ends_and_is_renewed():
    patience, never = Patience(), concurrent.futures.Future()
    assert not patience.wait(never, 0.01)
    patience.end()
    patience.end()
    assert not patience.wait(never, 600)
    assert not pickle.loads(pickle.dumps(patience)).has_ended
    patience.renew()
    assert not patience.has_ended
    never.set_result(SampledPoint((), 0.0))
    assert patience.wait(never, 600)


def test_long_trials_get_points_that_know_nearly_all_results(process):
    search = Search(16, 160.0)
    assert len(search.run(100)) == 84
    for request in process.requests[2:]:
        n_known = sum(row.state is TrialState.COMPLETE for row in request.rows)
        assert 0 <= request.make_sampler.args[0] - 1 - 16 - n_known <= 1


def test_one_long_trial_after_the_other_waits_for_a_point_that_knows_all_results(process):
    search = Search(1, 60.0)
    assert search.run(50) == [round(0.001 * index, 3) for index in range(1, 50)]
    for number, request in enumerate(process.requests, 1):
        assert [row.state for row in request.rows] == [TrialState.COMPLETE] * number


def test_quick_trials_get_the_points_that_are_there(process):
    search = Search(16, 1.0)
    search.run(60)
    process.is_quick = False
    search.run(3)  # those that are there are taken
    before = clock.now
    assert search.run(10) == []
    assert clock.now - before == pytest.approx(10 / 16)  # no trial has waited
    first = next(index for index, answer in enumerate(process.answers) if not answer.done())
    process.answer(first)
    search.tell()
    assert search.ask() == round(0.001 * (first + 1), 3)


def test_points_that_are_sampled_know_of_each_other(process):
    process.is_quick = False
    search = Search(16, 1.0)
    search.run(100)
    waiting = [each for each, answer in zip(process.requests, process.answers, strict=True) if not answer.cancelled()]
    first, second, third = waiting
    assert first.id in second.earlier
    assert {first.id, second.id} <= set(third.earlier)
    assert len({request.make_sampler.args[0] for request in waiting}) == 3


def test_a_point_that_does_not_come_in_time_is_for_a_later_trial(process):
    search = Search(1, 60.0)
    search.run(20)
    process.is_quick = False
    before = clock.now
    search.tell()
    assert search.ask() is None
    assert clock.now - before == pytest.approx(60 + 3 * 0.2)  # it has waited for three times the usual cost
    process.answer(-1)
    process.is_quick = True
    clock.now += 1.0
    search.tell()
    assert search.ask() == round(0.001 * len(process.answers), 3)  # a new one: the other lacks a result


def test_old_points_are_sampled_anew(process):
    process.is_quick = False
    search = Search(16, 1.0)
    search.run(50)
    old = [index for index, answer in enumerate(process.answers) if not answer.done()]
    for index in old:
        process.answer(index)
    known = [sum(row.state is TrialState.COMPLETE for row in process.requests[index].rows) for index in old]
    search.tell(16)
    process.is_quick = True
    assert all(n < len(search.study.trials) - 16 for n in known)
    point = search.ask()
    assert point not in [round(0.001 * (index + 1), 3) for index in old]


def test_a_point_that_is_there_is_taken_while_the_process_is_busy_for_others(process):
    search = Search(16, 160.0)
    search.run(100)
    search.tell(5)  # it lacks several results
    n_requests = len(process.requests)
    process.is_busy = True
    assert search.ask() == round(0.001 * n_requests, 3)
    search.tell(5)
    process.is_busy = False
    assert search.ask() == round(0.001 * (n_requests + 2), 3)  # the trial has waited for a new one


def test_rare_asks_get_points_that_lack_few_results(process):
    """More than one point ahead would be old before it is taken."""
    for seconds, most in ((160.0, 0), (1.0, 2)):
        process.is_quick = True
        search = Search(16, seconds)
        search.run(80)
        process.requests.clear()
        process.answers.clear()
        process.is_quick = False
        search.run(20)
        assert max(len(request.earlier) for request in process.requests) == most


def test_a_point_of_another_space_is_not_taken(process):
    search = Search(16, 1.0)
    search.run(100)
    n_requests = len(process.requests)
    search.tell()
    assert search.ask({"x": FloatDistribution(0.0, 2.0)}) is None
    assert process.requests[n_requests].earlier == []


def test_a_sampler_that_goes_on_to_another_study_meanwhile_loses_no_point(process):
    search = Search(16, 1.0, share=None)
    wait = search.points.patience.wait

    def forgets(*arguments):
        search.points.forget()
        return wait(*arguments)

    search.points.patience.wait = forgets
    assert [search.ask(), search.ask()] == [0.001, 0.002]


def test_an_error_is_raised_where_the_point_is_taken(process):
    process.is_quick = False
    search = Search(16, 1.0)
    search.run(100)
    next(each for each in process.answers if not each.done()).set_exception(SamplerProcessError("by design"))
    search.tell()
    with pytest.raises(SamplerProcessError, match="by design"):
        search.ask()


def test_what_a_sampler_learns_from(process):
    study = optuna.create_study()
    space = {"x": FloatDistribution(0.0, 1.0), "c": CategoricalDistribution(("a", None))}
    trials = [study.ask(space) for _ in range(4)]
    study.tell(trials[0], 0.5)
    study.tell(trials[1], state=TrialState.FAIL)
    study.tell(trials[2], 0.25)
    waiting = study.ask()  # its parameters are not known
    points = GPPoints(1, TimeBudget(None), has_constraints=True)
    taken = points.take(study, cached_trial(waiting), space)
    assert taken == {"x": 0.001, "c": None}
    (request,) = process.requests

    def point(trial):
        return trial.params["x"], float(("a", None).index(trial.params["c"]))

    assert request.rows == [
        Row(TrialState.COMPLETE, [0.5], point(trials[0]), {}),
        Row(TrialState.COMPLETE, [0.25], point(trials[2]), {}),
        Row(TrialState.RUNNING, None, point(trials[3]), {}),
    ]


def test_a_copy_has_no_points_that_were_asked_for(process):
    process.is_quick = False
    search = Search(16, 1.0)
    search.run(100)
    n_requests = len(process.requests)
    search.points = pickle.loads(pickle.dumps(search.points))
    search.tell()
    assert search.ask() is None
    assert len(process.requests) == n_requests  # its clock has just begun


def test_the_sampler_of_a_request_is_optunas():
    for expects in (False, True):
        sampler = make_gp(1, has_constraints=IS_OPTUNA_4, expects_lengthscales=expects)
        assert type(sampler) is optuna.samplers.GPSampler


@pytest.mark.parametrize(("at_once", "n_objectives", "expected"), [(12, 1, False), (13, 1, True), (13, 2, False)])
@pytest.mark.parametrize("share", [None, 0.03])
def test_with_many_running_trials_lengthscales_are_expected(
    process, monkeypatch, at_once, n_objectives, expected, share
):
    search = Search(at_once, 1000.0, share=share, n_objectives=n_objectives)
    search.run(40)
    expecting = []
    monkeypatch.setattr(gp_points, "expect_lengthscales", lambda sampler, *_: expecting.append(sampler))
    kept = [(each.make_sampler() in expecting, each.search) for each in process.requests]
    flags = {expects for expects, _ in kept}
    assert kept[-1][0] is expected
    assert (True in flags) is expected
    assert len({search for _, search in kept}) == (1 if share is None else len(flags))


def test_the_usual_lengthscale_is_half_of_the_distance_of_random_points():
    random = np.random.default_rng(1)
    for n_parameters in (5, 20):
        one, other = random.random((2, 10_000, n_parameters))
        distance = np.linalg.norm(one - other, axis=1).mean()
        assert gp_points._usual_lengthscale(n_parameters) == pytest.approx(distance / 2, rel=0.05)
