"""Studies as files."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from optuna_flyte_dsl import InvalidStudyFileError
from optuna_flyte_dsl.study.study_file import read_study, write_study

DISTRIBUTIONS = {
    "x": FloatDistribution(-1, 1),
    "n": IntDistribution(1, 9, step=2),
    "c": CategoricalDistribution(("a", None, 3, 2.5, True)),
}
attributes = st.dictionaries(st.text(min_size=1, max_size=5), st.integers() | st.text(max_size=5), max_size=2)


@st.composite
def trials(draw, n_objectives):
    params = {
        "x": draw(st.floats(-1, 1)),
        "n": draw(st.sampled_from([1, 3, 9])),
        "c": draw(st.sampled_from(["a", None])),
    }
    kept = draw(st.sets(st.sampled_from(sorted(params))))
    state = draw(st.sampled_from(TrialState))
    values = draw(st.lists(st.floats(allow_nan=False), min_size=n_objectives, max_size=n_objectives))
    return optuna.trial.create_trial(
        state=state,
        values=values if state is TrialState.COMPLETE else None,
        params={name: each for name, each in params.items() if name in kept},
        distributions={name: each for name, each in DISTRIBUTIONS.items() if name in kept},
        user_attrs=draw(attributes),
        system_attrs=draw(attributes),
        intermediate_values=draw(st.dictionaries(st.integers(0, 5), st.floats(allow_nan=False), max_size=2)),
    )


def content(study):
    fields = ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs")
    fields = (*fields, "intermediate_values", "datetime_start", "datetime_complete")
    return (
        study.study_name,
        study.directions,
        study.user_attrs,
        study.metric_names,
        [{field: getattr(trial, field) for field in fields} for trial in study.trials],
    )


@given(st.data())
@settings(max_examples=30)
def test_a_study_is_the_same_after_it_was_written_and_read(tmp_path_factory, data):
    n_objectives = data.draw(st.integers(1, 2))
    study = optuna.create_study(study_name="ours", directions=["maximize"] * n_objectives)
    for trial in data.draw(st.lists(trials(n_objectives), max_size=4)):
        study.add_trial(trial)
    for name, value in data.draw(attributes).items():
        study.set_user_attr(name, value)
    if data.draw(st.booleans()):
        study.set_metric_names(["loss", "time"][:n_objectives])
    path = tmp_path_factory.mktemp("study") / "study.journal"
    write_study(study, path)
    again = read_study(path)
    assert content(again) == content(study)
    opened = optuna.load_study(  # as a program without this library opens it
        study_name=None, storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    )
    assert content(opened) == content(study)
    again.add_trial(optuna.trial.create_trial(values=[0.0] * n_objectives))  # in memory: the file does not change
    assert content(opened) == content(study)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "must hold one study, but it holds 0"),
        ("no journal", "holds no study: .* is no journal"),
        ('{"op_code": 0, "wor', "must hold one study, but it holds 0|holds no study"),
    ],
)
def test_a_file_without_a_study_is_refused(tmp_path, text, message):
    path = tmp_path / "study.journal"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidStudyFileError, match=message):
        read_study(path)


def test_a_file_with_two_studies_is_refused(tmp_path):
    path = tmp_path / "study.journal"
    for _ in range(2):
        write_study(optuna.create_study(), path)
    with pytest.raises(InvalidStudyFileError, match="must hold one study, but it holds 2"):
        read_study(path)


def test_an_attribute_that_no_file_keeps_is_named(tmp_path):
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"when": {1, 2}}))
    with pytest.raises(InvalidStudyFileError, match=r"The attribute 'when' of trial 0 is {1, 2}, which no file"):
        write_study(study, tmp_path / "study.journal")
