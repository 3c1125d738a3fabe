"""`TrialHistory`: which trials of a study have ended since the last look, so that no look reads the whole study."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial


class TrialHistory:
    """Tells each trial that has ended once: Optuna does not change a trial that has ended."""

    def __init__(self) -> None:
        self._n_seen = 0  # of the first trials: each is at the index that is its number
        self._open: list[int] = []  # the numbers of those of them that had not ended

    def look(self, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Look at the trials of the study.

        Args:
            trials: All trials, in the order of their numbers. Where a number is missing, its trial is not visible yet.

        Returns:
            The trials that have ended since the last look, and the trials that may still change. Behind a missing
            number, all trials are among the latter.
        """
        ended: list[FrozenTrial] = []
        changing: list[FrozenTrial] = []
        still_open: list[int] = []
        end = self._n_seen
        while end < len(trials) and trials[end].number == end:
            end += 1
        for numbers in (self._open, range(self._n_seen, end)):
            for number in numbers:
                if number >= len(trials):  # an older list than the one of the last look
                    still_open.append(number)
                    continue
                trial = trials[number]
                if trial.state.is_finished():
                    ended.append(trial)
                else:
                    still_open.append(number)
                    changing.append(trial)
        self._n_seen, self._open = end, still_open
        return ended, [*changing, *trials[end:]]
