"""`EngineConformance`: the tests that each engine passes, ours and others', as a base class for pytest."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.decorator import Optimized, optimize
from optuna_flyte_dsl.errors import ObjectiveValueError, TooManyFailuresError
from optuna_flyte_dsl.search.runner import Runner
from optuna_flyte_dsl.search_assembly import Assembly
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.study.attributes import ATTEMPTS, ERROR
from optuna_flyte_dsl.study.opening import StudySource
from optuna_flyte_dsl.testing import conformance_objectives as objectives


class EngineConformance:
    """What becomes of a trial is the same wherever it runs: an engine's runner passes these tests.

    Derive a class from this one, called `Test...`, and give it `make_runner`; pytest does the rest:

        class TestMyRunner(EngineConformance):
            def make_runner(self, objective):
                return MyRunner(objective)

    Attributes:
        carries_trials: Whether an objective may take `trial: optuna.Trial`.
    """

    carries_trials = True

    def make_runner(self, objective: Objective) -> Runner:
        """Return a runner of the trials of an objective; see `Runner`."""
        raise NotImplementedError

    def objective(self, function: Callable[..., Any]) -> Optimized[..., Any]:
        """Return the objective that does what a function of `conformance_objectives` does.

        An engine whose objectives are tasks of its own returns its task of this name.
        """
        return optimize(function)

    async def search(
        self, objective: Optimized[..., Any], arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> optuna.Study:
        """Run a search. An engine that is more than a runner, such as a cluster, runs it in its own way."""
        search = objective.with_options(**options)
        session = search._session
        thread = Threads(limit=1)
        try:
            source = StudySource(session.options, session.objective)
            call = session.prepare((), arguments)
            parts = Assembly(session.options, session.objective, source, call, thread, make_runner=self.make_runner)
            return await parts.run_here()
        finally:
            await thread.close()

    def _search(
        self, function: Callable[..., Any], xs: tuple[float, ...] = (), /, **given: Any
    ) -> Coroutine[Any, Any, optuna.Study]:
        """Return a search whose trials have given values of `x`.

        Args:
            **given: Options, and `arguments` of the call.
        """
        arguments = given.pop("arguments", {})
        options = {"n_trials": max(1, len(xs)), "concurrency": 1, "progress": False, **given}
        if xs:
            options["initial_points"] = [{"x": x} for x in xs]
        return self.search(self.objective(function), arguments, options)

    def test_what_works_is_complete(self) -> None:
        study = asyncio.run(self._search(objectives.good, (0.25, 0.5), concurrency=2))
        assert sorted((trial.params["x"], trial.value) for trial in study.trials) == [(0.25, 0.25), (0.5, 0.5)]
        assert _states(study) == ["COMPLETE", "COMPLETE"]

    def test_arguments_arrive_as_they_were_given(self) -> None:
        arguments = {"number": 7, "ratio": 0.1, "text": "ö'\n", "is_on": True}
        study = asyncio.run(self._search(objectives.takes_plain_values, (0.5,), arguments=arguments))
        assert _states(study) == ["COMPLETE"], _reasons(study)

    def test_an_error_fails_its_trial_and_no_other(self) -> None:
        study = asyncio.run(self._search(objectives.fails_at_times, (0.1, 0.9, 0.2)))
        assert _states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
        assert "one in three" in _reasons(study)[1]

    def test_an_objective_that_always_fails_ends_the_search_with_its_cause(self) -> None:
        try:
            asyncio.run(self._search(objectives.fails, n_trials=100, max_consecutive_failures=2))
        except TooManyFailuresError as error:
            assert _states(error.study) == ["FAIL", "FAIL"]
            assert "nothing works" in str(error)
            assert "nothing works" in str(error.__cause__)
        else:
            raise AssertionError("The search must end with TooManyFailuresError.")

    def test_nan_is_a_failed_trial(self) -> None:
        study = asyncio.run(self._search(objectives.returns_nan, (0.5,)))
        assert (_states(study), _reasons(study)) == (["FAIL"], ["The objective returned NaN: nan"])

    def test_what_is_no_number_ends_the_search(self) -> None:
        try:
            asyncio.run(self._search(objectives.returns_none, (0.5, 0.6)))
        except ObjectiveValueError as error:
            assert "must return a number" in str(error)
        else:
            raise AssertionError("The search must end with ObjectiveValueError.")

    def test_an_attempt_that_raised_is_tried_again_with_the_same_parameters(self, tmp_path: pathlib.Path) -> None:
        arguments = {"folder": str(tmp_path)}
        study = asyncio.run(self._search(objectives.works_the_second_time, (0.5,), retries=1, arguments=arguments))
        assert _states(study) == ["COMPLETE"]
        (attempt,) = study.trials[0].user_attrs[ATTEMPTS]
        assert "the first time" in attempt

    def test_trials_run_at_the_same_time(self, tmp_path: pathlib.Path) -> None:
        arguments = {"folder": str(tmp_path)}
        study = asyncio.run(self._search(objectives.meets, (0.25, 0.75), concurrency=2, arguments=arguments))
        assert [trial.value for trial in study.trials] == [2, 2]

    def test_a_trial_that_hangs_is_given_up_at_its_time_limit(self, tmp_path: pathlib.Path) -> None:
        arguments = {"folder": str(tmp_path)}
        try:
            study = asyncio.run(self._search(objectives.hangs, (0.5,), trial_timeout=0.3, arguments=arguments))
        finally:
            (tmp_path / "over").touch()
        assert _states(study) == ["FAIL"]
        assert _reasons(study)[0].startswith("TrialTimeoutError: The trial ran for longer than `trial_timeout`, 0.3 s")

    def test_a_search_that_takes_too_long_stops_its_trials(self, tmp_path: pathlib.Path) -> None:
        options = {"timeout": 1.0, "n_trials": 4, "concurrency": 2, "arguments": {"folder": str(tmp_path)}}
        try:
            study = asyncio.run(self._search(objectives.hangs, **options))
        finally:
            (tmp_path / "over").touch()
        assert set(_states(study)) <= {"FAIL"}
        assert len(study.trials) <= 2  # as many as run at once: no other starts
        assert all("The search's timeout of 1 s came" in reason for reason in _reasons(study))

    def test_a_cancelled_search_tells_its_trials(self, tmp_path: pathlib.Path) -> None:
        study = optuna.create_study()

        async def cancel() -> None:
            arguments = {"folder": str(tmp_path)}
            running = asyncio.ensure_future(self._search(objectives.hangs, (0.5,), study=study, arguments=arguments))
            while not running.done() and not list(tmp_path.glob("begun-*")):
                await asyncio.sleep(0.01)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            assert running.cancelled()

        try:
            asyncio.run(cancel())
        finally:
            (tmp_path / "over").touch()
        assert _states(study) == ["FAIL"]
        assert "was cancelled" in _reasons(study)[0]

    def test_a_trial_reports_and_is_pruned(self) -> None:
        if not self.carries_trials:
            import pytest  # runs this test

            pytest.skip("The engine carries no trials.")
        pruner = optuna.pruners.ThresholdPruner(upper=0.5)
        study = asyncio.run(self._search(objectives.prunes, (0.9, 0.2), pruner=pruner))
        assert _states(study) == ["PRUNED", "COMPLETE"]
        assert [trial.intermediate_values for trial in study.trials] == [{0: 0.9}, {0: 0.2, 1: 0.1}]
        assert [trial.value for trial in study.trials] == [0.9, 0.2]
        assert [trial.user_attrs["ran"] for trial in study.trials] == [True, True]


def _states(study: optuna.Study) -> list[str]:
    states: list[TrialState] = [trial.state for trial in study.trials]
    return [state.name for state in states]


def _reasons(study: optuna.Study) -> list[str]:
    return [str(trial.user_attrs.get(ERROR, "")) for trial in study.trials]
