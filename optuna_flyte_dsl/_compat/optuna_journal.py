"""Private names of Optuna's journal storage."""

import json
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation

_GATHERED = (JournalOperation.SET_TRIAL_PARAM, JournalOperation.SET_TRIAL_USER_ATTR)


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
        logs = self._gathered.get(trial_id)
        if logs:
            with self._thread_lock:
                self._backend.append_logs(logs)
                self._sync_with_backend()
        self._gathered.pop(trial_id, None)

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        logs = self._gathered.get(extra_fields.get("trial_id", -1))
        if logs is None:
            super()._write_log(op_code, extra_fields)
            return
        json.dumps(extra_fields)  # what cannot be stored is refused now
        log = {"op_code": op_code, "worker_id": self._replay_result.worker_id, **extra_fields}
        if op_code in _GATHERED:
            logs.append(log)
        else:  # it comes after what was gathered
            self._backend.append_logs([*logs, log])
            logs.clear()
