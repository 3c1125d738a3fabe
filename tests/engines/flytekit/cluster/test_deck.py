"""The Deck of an eager workflow."""

import threading

import quick
from flytekit.core.context_manager import FlyteContextManager
from flytekit.deck.deck import Deck

from tests.support._compat import enable_deck
from tests.support.cluster_searches import states
from tests.support.eager_pod import Pod


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
