"""The Deck of an eager workflow."""

import threading
import time

import pytest
import quick
from flytekit.core.context_manager import FlyteContextManager
from flytekit.deck.deck import Deck

from optuna_flyte_dsl import Optimizer, suggest
from tests.support._compat import enable_deck
from tests.support.eager_pod import Pod
from tests.support.small_searches import states


@pytest.mark.newest
def test_a_deck_that_cannot_be_written_holds_up_no_trial(cluster, tmp_path, monkeypatch, pauses):
    pauses.deck = 0.0
    release = threading.Event()
    begun = []
    monkeypatch.setattr(Deck, "publish", staticmethod(lambda: begun.append(1) or release.wait(60)))

    async def search():
        enable_deck(FlyteContextManager.current_context().user_space_params)
        return await quick.train()

    try:
        assert states(Pod(cluster, tmp_path, 0).run(search)) == ["COMPLETE"] * 6
        assert begun == [1], "one write at a time"
    finally:
        release.set()


class Unshown:
    """A value whose repr raises."""

    def __repr__(self):
        raise RuntimeError("no text for this")


def test_a_value_whose_repr_raises_fails_no_trial(cluster, tmp_path):
    async def search():
        enable_deck(FlyteContextManager.current_context().user_space_params)
        return await Optimizer(quick.takes_anything, 1, 2, progress=False)(x=suggest.float(0, 1), thing=Unshown())

    assert states(Pod(cluster, tmp_path, 0).run(search)) == ["COMPLETE"] * 2


def test_the_end_of_a_search_waits_for_a_write_that_is_under_way(cluster, tmp_path, monkeypatch, pauses):
    pauses.deck = 0.0
    written = []

    def publish():
        while any(each.running for each in cluster.executions.values()) or len(cluster.executions) < 6:
            time.sleep(0.01)
        time.sleep(0.3)  # the search has ended meanwhile
        written.append(1)

    monkeypatch.setattr(Deck, "publish", staticmethod(publish))

    async def search():
        enable_deck(FlyteContextManager.current_context().user_space_params)
        await quick.train()
        return list(written)

    assert Pod(cluster, tmp_path, 0).run(search) == [1]
