import asyncio
import io
import logging

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live

from optuna_flyte_dsl import AutoSampler, Float, ObjectiveValueError, Optimizer
from optuna_flyte_dsl.search import progress


def objective(x: Float(0, 1)):
    if x < 0.3:
        raise RuntimeError("low")
    if x < 0.5:
        raise optuna.TrialPruned
    return x


@pytest.fixture(autouse=True)
def _talkative_optuna(_quiet_optuna):
    optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.fixture
def terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr(progress, "_on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    return screen


def search(**options):
    return Optimizer(objective, 2, 20, seed=1, **options).run_sync()


def test_a_search_that_is_interrupted_says_how_far_it_came(warned):
    async def waits(x: Float(0, 1)) -> float:
        if len(waits_for) == 2:
            task.cancel()
            await asyncio.Event().wait()
        waits_for.append(x)
        return x

    async def main():
        nonlocal task
        task = asyncio.ensure_future(Optimizer(waits, 1, 9, progress=False)())
        await asyncio.wait([task])

    waits_for, task = [], None
    asyncio.run(main())
    assert warned()[-1] == (
        "`waits` was interrupted when 2 of 9 trials had finished. They are in its study, which is in memory, and ends "
        "with this process. To keep a study, give `storage`."
    )


def test_on_a_terminal_there_is_a_bar_with_counts_and_the_best_value(terminal):
    study = search()
    shown = terminal.getvalue()
    assert "objective" in shown
    assert "20/20" in shown
    assert f"best {study.best_value:.6g}" in shown
    assert "failed" in shown
    assert "pruned" in shown
    assert "left" in shown


def test_it_can_be_turned_off(terminal, caplog):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    search(progress=False)
    assert terminal.getvalue() == ""
    ours = [record for record in caplog.records if record.name == "optuna_flyte_dsl"]
    assert not [record for record in ours if record.levelno == logging.INFO]


def test_a_second_search_at_the_same_time_logs_lines(terminal, caplog):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")

    async def main():
        both_run = asyncio.Barrier(2)

        async def meeting(x: Float(0, 1)):
            await both_run.wait()
            return objective(x)

        await asyncio.gather(Optimizer(meeting, 1, 3)(), Optimizer(meeting, 1, 3)())

    asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if "search over" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("meeting: search over, 3 of 3 trials finished")


def test_where_rich_shows_something_else_lines_are_logged(terminal, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    console = Console(file=terminal, force_terminal=True, width=120)
    monkeypatch.setattr("rich.console.Console", lambda stderr: console)
    with Live("mine", console=console, auto_refresh=False):
        search()
    search()
    assert "20/20" in terminal.getvalue()


def test_elsewhere_a_line_is_logged_now_and_then(caplog, monkeypatch, capfd, pauses):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    pauses.progress_line = 0.0
    study = search()
    ours = [record for record in caplog.records if record.name == "optuna_flyte_dsl"]
    lines = [record.getMessage() for record in ours if record.levelno == logging.INFO]
    assert lines[-1].startswith("objective: search over, 20 of 20 trials finished, best ")
    assert f"best {study.best_value:.6g}" in lines[-1]
    assert any(line.startswith("objective: 7 of 20 trials finished") for line in lines)
    assert capfd.readouterr().out == ""


class Gone(io.StringIO):
    """Standard error whose reader is gone: `python search.py 2>&1 | head -1`."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


class GoneTerminal(Gone):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [None, Gone(), GoneTerminal()], ids=["none", "pipe", "terminal"])
def test_a_search_goes_on_though_nothing_can_be_shown(stderr, monkeypatch, pauses):
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    pauses.progress_line = 0.0
    for _ in range(2):
        assert len(search().trials) == 20
    assert progress.Bar._taken.acquire(blocking=False)
    progress.Bar._taken.release()


@pytest.mark.parametrize(("verbosity", "shown"), [(optuna.logging.INFO, True), (optuna.logging.WARNING, False)])
def test_lines_that_no_log_shows_are_on_standard_error_unless_optuna_is_quiet(capfd, pauses, verbosity, shown):
    optuna.logging.set_verbosity(verbosity)
    pauses.progress_line = 0.0
    search()
    written = capfd.readouterr()
    assert ("objective: search over, 20 of 20 trials finished, best " in written.err) is shown
    assert ("objective: 7 of 20 trials finished" in written.err) is shown
    assert written.out == ""


@pytest.mark.parametrize(("direction", "best"), [("minimize", min), ("maximize", max)])
def test_the_best_value_follows_the_direction(direction, best):
    tally = progress.Tally("o", 3, [optuna.study.StudyDirection[direction.upper()]])
    for value in (2.0, 1.0, 3.0):
        tally.add(optuna.trial.create_trial(value=value))
    assert tally.best == best(1.0, 3.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_of_several_objectives_the_trials_on_the_front_are_counted(points):
    directions = [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]
    tally = progress.Tally("o", 3, directions)
    study = optuna.create_study(directions=directions)
    for values in points:
        trial = optuna.trial.create_trial(values=list(map(float, values)))
        tally.add(trial)
        study.add_trial(trial)
    assert len(tally.front) == len(study.best_trials)
    assert tally.describe().startswith(f"{len(tally.front)} trial")
    assert tally.best is None


def test_a_resumed_search_says_what_is_left(capsys, tmp_path):
    options = {"storage": tmp_path / "s.journal", "resume": True}
    Optimizer(objective, 1, 3, seed=1, **options).run_sync()
    assert "to do" not in capsys.readouterr().err
    Optimizer(objective, 1, 8, seed=1, **options).run_sync()
    assert "objective: 5 to do, 3 of 8 trials finished" in capsys.readouterr().err


def test_a_search_whose_first_trial_ends_it_has_run_a_trial(capsys):
    def words(x: Float(0, 1)):
        return "high"

    with pytest.raises(ObjectiveValueError):
        Optimizer(words, 1, 3).run_sync()
    assert "words: search over, 1 of 3 trials finished, 1 failed" in capsys.readouterr().err


def test_an_error_of_a_callback_says_that_a_callback_has_raised_it():
    def look(study, trial):
        raise LookupError("nothing there")

    with pytest.raises(LookupError) as error:
        Optimizer(objective, 1, 3, callbacks=[look], progress=False).run_sync()
    assert error.value.__notes__ == ["A callback of `objective` raised this, after trial 0."]


def test_an_error_of_a_callback_that_takes_no_note_is_raised_as_it_is():
    class Frozen(Exception):
        def __setattr__(self, name, value):
            if name == "__notes__":
                raise TypeError(name)
            super().__setattr__(name, value)

    def look(study, trial):
        raise Frozen

    with pytest.raises(Frozen):
        Optimizer(objective, 1, 3, callbacks=[look], progress=False).run_sync()


def test_the_last_line_tells_of_the_study_though_another_search_has_run_some_of_its_trials(caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    options = {"storage": tmp_path / "study.journal", "study_name": "s", "resume": True, "n_trials": 8}

    def works(x: Float(0, 1)) -> float:
        return x

    async def main():
        started = [Optimizer(works, concurrency=1, **options)() for _ in range(2)]
        return await asyncio.gather(*started)

    study, _ = asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if " of 8 trials finished" in record.getMessage()]
    last = f"8 of 8 trials finished, best {study.best_value:.6g}, sampler quasi-random"
    assert [line.partition(", ")[2] for line in lines[-2:]] == [last] * 2


def test_the_last_line_counts_the_samplers(caplog):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    Optimizer(lambda trial: trial.suggest_float("x", 0, 1), 1, 13, sampler=AutoSampler(time_share=0.0)).run_sync()
    lines = [record.getMessage() for record in caplog.records if "search over" in record.getMessage()]
    assert lines[-1].endswith(", samplers: quasi-random 10, TPESampler 3")


def test_a_search_that_is_interrupted_in_its_first_trial_does_not_say_that_none_was_run(caplog):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")

    async def main():
        async def waits(x: Float(0, 1)) -> float:
            search.cancel()
            await asyncio.Event().wait()

        search = asyncio.ensure_future(Optimizer(waits, 1, 3)())
        await asyncio.wait([search])

    asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if "of 3 trials finished" in record.getMessage()]
    assert lines[-1] == "waits: no trial has ended, 0 of 3 trials finished"


@pytest.mark.parametrize(
    ("resume", "end"),
    [(True, ". Run it again to continue."), (False, ". To be able to continue a search, give `resume=True`.")],
)
def test_the_last_line_of_an_interrupted_search_says_that_it_was_interrupted(caplog, tmp_path, resume, end):
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    n_begun = 0

    async def waits(x: Float(0, 1)) -> float:
        nonlocal n_begun
        n_begun += 1
        if n_begun % 3 == 0:
            search.cancel()
            await asyncio.Event().wait()
        return x

    async def main():
        nonlocal search
        search = asyncio.ensure_future(Optimizer(waits, 1, 9, storage=tmp_path / "s.journal", resume=resume)())
        await asyncio.wait([search])

    search = None
    asyncio.run(main())
    assert f"`waits` was interrupted when 2 of 9 trials had finished. They are in its study{end}" in caplog.messages
    assert caplog.messages[-1].startswith("waits: interrupted, 2 of 9 trials finished, best ")


def test_a_search_that_resumes_says_how_to_continue_though_no_trial_has_finished(caplog, tmp_path):
    async def main():
        async def waits(x: Float(0, 1)) -> float:
            search.cancel()
            await asyncio.Event().wait()

        search = asyncio.ensure_future(Optimizer(waits, 1, 3, storage=tmp_path / "s.journal", resume=True)())
        await asyncio.wait([search])

    asyncio.run(main())
    said = "`waits` was interrupted before one of its trials had finished. Run it again to continue."
    assert said in caplog.messages
