"""Private names of Optuna's journal storage."""

import json
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

_GATHERED = (JournalOperation.SET_TRIAL_PARAM, JournalOperation.SET_TRIAL_USER_ATTR)


def bytes_read(file: JournalFileBackend) -> int:
    """Return how many bytes of a journal file were read so far, in whole lines."""
    return next(reversed(file._log_number_offset.values()))  # the offsets behind the lines, in their order


class GatheringJournalStorage(JournalStorage):
    """Optuna's journal storage, which can write the parameters and user attributes of a trial at once.

    Each write locks the file, and waits until the disk has the line.
    """

    def __init__(self, log_storage: BaseJournalBackend) -> None:
        self._gathered: dict[int, list[dict[str, Any]]] = {}
        super().__init__(log_storage)

    def gather(self, trial_id: int) -> None:
        """From now on, keep the parameters and user attributes that are set for a trial, until `write` stores them."""
        self._gathered[trial_id] = []

    def write(self, trial_id: int) -> None:
        """Store what was set for a trial since `gather`. If that fails, the call can be repeated."""
        with self._thread_lock:
            self._write_gathered(trial_id)

    def _write_gathered(self, trial_id: int) -> None:
        logs = self._gathered.pop(trial_id, None)
        if not logs:
            return
        try:
            self._backend.append_logs(logs)
        except BaseException:
            self._gathered[trial_id] = logs
            raise
        # Each line may raise when it is read, if another process has ended the trial. None may be left to a later call.
        error: Exception | None = None
        read = -1
        while read < self._replay_result.log_number_read:
            read = self._replay_result.log_number_read
            try:
                self._sync_with_backend()
            except Exception as raised:  # noqa: BLE001 - raised below
                error = error or raised
        if error is not None:
            raise error

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        trial_id = extra_fields.get("trial_id", -1)
        if trial_id in self._gathered and op_code in _GATHERED:
            json.dumps(extra_fields)  # what cannot be stored is refused now
            log = {"op_code": op_code, "worker_id": self._replay_result.worker_id, **extra_fields}
            self._gathered[trial_id].append(log)
            return
        if op_code == JournalOperation.SET_TRIAL_STATE_VALUES:  # it comes after what was gathered
            self._write_gathered(trial_id)
        super()._write_log(op_code, extra_fields)
