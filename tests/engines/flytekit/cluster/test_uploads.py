"""Files among the inputs."""

import pytest
import quick
import tables
from flytekit.types.file import FlyteFile

from tests.support._compat import forget_uploads
from tests.support.cluster_searches import echo
from tests.support.eager_pod import Pod, killed_after
from tests.support.small_searches import states


@pytest.mark.parametrize("content", ["the same", "another"])
def test_a_trial_with_a_file_is_adopted_if_the_files_content_is_the_same(cluster, tmp_path, content):
    cluster.instant = echo(seconds=0.2)
    (tmp_path / "data").write_text("the same")

    def search():
        return quick.reads_prepared(prepared=quick.Prepared(file=FlyteFile(str(tmp_path / "data"))))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    (tmp_path / "data").write_text(content)
    forget_uploads()
    study = Pod(cluster, tmp_path, 1).run(search)
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == (2 if content == "the same" else 4)


@pytest.mark.parametrize("has_file", [False, True])
def test_a_trial_with_a_set_in_a_dataclass_is_adopted_though_the_sets_order_is_another(cluster, tmp_path, has_file):
    """The order of a set's items depends on what it held before, and on the process."""
    cluster.instant = echo(seconds=0.2)
    orders = [{0, 8}, {8, 0}]
    assert [list(each) for each in orders] == [[0, 8], [8, 0]]

    (tmp_path / "data").write_text("the same")

    def search(attempt):
        forget_uploads()
        file = FlyteFile(str(tmp_path / "data")) if has_file else None
        inner = [{"a": frozenset({attempt * 0})}]
        return quick.reads_tagged(tagged=quick.Tagged(tags=orders[attempt], file=file, inner=inner))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search(0)))
    study = Pod(cluster, tmp_path, 1).run(lambda: search(1))
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == 2


@pytest.mark.parametrize("second", [[1, 2], [1, 3]])
def test_a_trial_with_a_table_is_adopted_if_the_tables_rows_are_the_same(cluster, tmp_path, second):
    """Each process writes the table to another address, without flytekit's data access layer."""
    cluster.instant = echo(seconds=0.2)

    def search(rows):
        forget_uploads()
        return tables.reads_rows(rows=tables.Rows(rows))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search([1, 2])))
    study = Pod(cluster, tmp_path, 1).run(lambda: search(second))
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == (2 if second == [1, 2] else 4)
