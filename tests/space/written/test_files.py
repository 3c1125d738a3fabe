"""Files of spaces, in JSON and in YAML."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl import Float, InvalidSpaceError, SearchSpace
from optuna_flyte_dsl.space.written import files

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def train(x: Float(0, 1)) -> float: ...


@given(PLAIN)
def test_plain_data_is_the_same_after_it_was_written_and_read(data):
    assert files.from_json(files.to_json(data)) == data
    assert files.from_yaml(files.to_yaml(data)) == data


@given(st.text())
def test_a_text_stays_a_text_for_every_reader_of_yaml(text):
    assert files.from_yaml(files.to_yaml([text])) == [text]
    assert yaml.safe_load(files.to_yaml([text])) == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-5", 1e-5),
        ("1", 1),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("~", None),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
    ],
)
def test_yaml_is_read_as_its_version_1_2_says(text, value):
    assert files.from_yaml(f"[{text}]") == [value]


@pytest.mark.parametrize("name", ["space.json", "space.yaml", "space.yml"])
def test_a_saved_space_can_be_loaded(tmp_path, name):
    space = SearchSpace.of(train).bind(x=Float(0.25, 0.5))
    space.save(tmp_path / name)
    assert SearchSpace.load(str(tmp_path / name)) == space


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("space.txt", "", "must end with one of .yaml, .yml, .json, but got"),
        ("none.json", None, "cannot be read: .*No such file"),
        ("space.json", "{", "is not written in JSON"),
        ("space.json", '{"a": 1, "a": 2}', "has the key 'a' twice"),
        ("space.yaml", "{", "is not written in YAML"),
        ("space.yaml", "a: 1\na: 2", "has the key 'a' twice"),
        ("space.yaml", "a: &x [1]\nb: *x", "must have no aliases, but this one has"),
        ("space.yaml", "*x", "must have no aliases"),
        ("space.yaml", "a: !!bool maybe", "is not written in YAML"),
        ("space.yaml", "a: !!timestamp foo", "is not written in YAML"),
        ("space.yaml", "a: !!int x", "is not written in YAML"),
        ("space.json", "[" * 100_000, "is not written in JSON"),
        ("space.yaml", "a: !!python/object/apply:os.getcwd []", "is not written in YAML"),
    ],
)
def test_a_file_that_holds_no_space_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidSpaceError, match=message):
        SearchSpace.load(tmp_path / name)


def test_what_is_no_path_or_no_folder_is_refused(tmp_path):
    with pytest.raises(InvalidSpaceError, match=r"must be given as a path, but got {'a': 1}"):
        SearchSpace.load({"a": 1})
    with pytest.raises(InvalidSpaceError, match=r"cannot be written: .*No such file"):
        SearchSpace.of(train).save(tmp_path / "none" / "space.yaml")
