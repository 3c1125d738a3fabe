"""Each trial that has ended is told once, whatever the order in which trials end and become visible."""

import types

from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from optuna_flyte_dsl.study.trial_history import TrialHistory

STATES = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]


@given(st.data())
def test_each_trial_that_has_ended_is_told_once(data):
    history, told, states, hidden = TrialHistory(), [], {}, set()
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.integers(0, 3))):
            number = len(states)
            states[number] = TrialState.RUNNING
            if data.draw(st.booleans()):
                hidden.add(number)
        for number, state in states.items():
            if not state.is_finished() and data.draw(st.booleans()):
                states[number] = data.draw(st.sampled_from([*STATES, TrialState.WAITING]))
        hidden = {number for number in hidden if data.draw(st.booleans())}
        visible = [number for number in states if number not in hidden]
        trials = [types.SimpleNamespace(number=number, state=states[number]) for number in visible]
        ended, changing = history.look(trials)
        told += [trial.number for trial in ended]
        assert len(set(told)) == len(told)
        assert all(trial.state.is_finished() for trial in ended)
        assert sorted([*told, *(trial.number for trial in changing)]) == visible
        first_hidden = min(hidden, default=len(states))
        assert all(not trial.state.is_finished() or trial.number > first_hidden for trial in changing)
