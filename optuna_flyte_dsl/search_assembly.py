"""Assembles one search of an objective from its parts: the study, the runner, the loop, the progress display."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.engines.engine import RemoteSearch
from optuna_flyte_dsl.engines.engine_choice import host_engine
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.errors import StorageUnavailableError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.sampling.auto_sampler import AutoSampler
from optuna_flyte_dsl.sampling.sampler_packages import check_packages
from optuna_flyte_dsl.search.ask_tell import AskTell
from optuna_flyte_dsl.search.loop import SearchLoop
from optuna_flyte_dsl.search.progress import Reporter, Tally
from optuna_flyte_dsl.search.runner import Runner
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.priors import unused_priors
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study import resuming
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.neighbours import refuse_neighbours
from optuna_flyte_dsl.study.opening import StudySource, make_sampler, wait_until_open
from optuna_flyte_dsl.study.storages import check_choices, is_kept
from optuna_flyte_dsl.study.study_view import view_of
from optuna_flyte_dsl.study.taken_points import TakenPoints
from optuna_flyte_dsl.study.warm_start import WarmStarter

T = TypeVar("T")

_WRITERS = 8
"""How many threads store and tell trials in a database on a server. SQLAlchemy's pool has up to 15 connections."""


class Call(NamedTuple):
    """What one call searches."""

    space: SearchSpace
    points: tuple[Mapping[str, Any], ...]  # the initial points
    taken: TakenPoints | None  # the points that trials have tried; `None` if no option needs these points


@dataclass(frozen=True)
class Assembly:
    """The parts of one search. A single thread, `thread`, asks for its trials."""

    options: Options
    objective: Objective
    source: StudySource
    call: Call
    thread: Threads
    make_runner: Callable[[Objective], Runner] | None = None  # by default the objective's engine makes the runner
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def _in_time(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the storage, in the study's thread; give up at the search's `timeout`."""
        seconds = self.options.timeouts[0]
        scope = asyncio.timeout_at(None if seconds is None else self.started + seconds)
        try:
            async with scope:
                value: T = await self.thread.run(function, *args)
                return value
        except TimeoutError:
            if not scope.expired():
                raise
            raise StorageUnavailableError(
                f"The storage of `{self.objective.name}` has not answered for {seconds:g} s, which is the search's "
                "`timeout`: no trial was run. Check the storage, or raise `timeout`.",
                (),
                None,
            ) from None

    async def _open_in_time(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that opens or reads the bare storage, without a `DurableStorage`; wait out a short outage."""
        given_up = threading.Event()
        opening = functools.partial(wait_until_open, function, *args, of=self.objective.name, given_up=given_up)
        try:
            return await self._in_time(opening)
        finally:
            given_up.set()

    def _opener(self, remote: RemoteSearch | None) -> Callable[..., Awaitable[Any]]:
        """Return `_open_in_time`; for a study in memory, which is there at once, a plain call in the study's thread."""
        return self._open_in_time if remote is not None or self.source.is_given else self.thread.run

    async def run_here(self) -> optuna.Study:
        """Search with the trials on this machine."""
        study: optuna.Study = await self._opener(None)(self.source.get)
        await self._resume_and_run(study, None)
        return study

    async def run_remotely(self, remote: RemoteSearch) -> optuna.Study:
        """Search with the trials on a cluster, and continue the trials that the pod's last attempt has left."""
        await remote.check(self.objective)
        study: optuna.Study = await self._open_in_time(self.source.get, remote.open_storage)
        remote.is_checkpointed = self.source.is_checkpointed and remote.open_storage is not None
        remote.is_durable = remote.is_checkpointed or (self.options.resume and is_kept(storage_of(study)))
        await self._resume_and_run(study, remote)
        return study

    async def _resume_and_run(self, study: optuna.Study, remote: RemoteSearch | None) -> None:
        options, thread, n_trials = self.options, self.thread, self.options.n_trials
        is_checkpointed = remote is not None and remote.is_checkpointed
        if not self.objective.suggests_itself and not is_checkpointed:
            check = functools.partial(resuming.check_space, resumes=options.resume)
            await self._opener(remote)(check, study, self.call.space)
        check_packages(study.sampler)  # a function may have made it
        self._use_priors(study.sampler)
        storage = storage_of(study)
        if not is_kept(storage):
            with refuse_neighbours(study, options, self.objective.name):
                finished = await thread.run(resuming.finished_in, study) if options.resume else ()
                left = resuming.Resumption(max(0, n_trials - len(finished)), finished=finished)
                await self._run(study, left, remote, None)
            return
        check_choices(self.call.space)
        durable: DurableStorage | None = None
        evidence = (remote.evidence, remote.life) if remote is not None else ()
        owner = await self._open_in_time(Owner, storage, *evidence)
        try:
            await self._open_in_time(owner.open)
            durable = DurableStorage(storage, owner, self.objective.name)
            kept = view_of(study, storage=durable)  # reads and writes through this view wait out an outage
            left = resuming.Resumption(n_trials)
            resume = functools.partial(
                resuming.resume,
                kept,
                durable,
                n_trials,
                takeover=options.takeover,
                adopts=_adopts(remote),
            )
            if remote is not None and is_checkpointed:
                async with self.source.opening:
                    call = next(self.source.calls)
                    if call == 0:
                        await remote.recover(kept, self.objective, self.call.space)
                    left = await thread.run(functools.partial(resume, call=call))
                    await remote.commit()  # commit now: each attempt's checkpoint starts empty
                await self._run(study, left, remote, durable)
                await thread.run(resuming.settle, kept, call)
                return
            if options.resume:
                left = await self._in_time(resume)
                await self._in_time(resuming.note_fixed_arguments, kept, self.call.space, self.objective.name)
                if remote is not None:
                    remote.use_study_in_names(await self._in_time(resuming.identity_of, kept, durable))
            await self._run(study, left, remote, durable)
        finally:
            if durable is not None:
                durable.hurry()
                await finish(functools.partial(self._close_spares, durable))
            owner.close()

    def _use_priors(self, sampler: BaseSampler) -> None:
        priors = self.call.space.priors
        if isinstance(sampler, AutoSampler):
            sampler.use_priors(priors)
        elif priors:
            logger.warning("%s", unused_priors(priors, type(sampler).__name__))

    async def _close_strays(self, storage: DurableStorage, study: optuna.Study) -> None:
        storage.hurry()
        with contextlib.suppress(Exception):  # if the storage still fails, the study's next run closes the strays
            await self.thread.run(storage.close_strays, study.study_name)

    async def _close_spares(self, storage: DurableStorage) -> None:
        if storage.spares:
            with contextlib.suppress(Exception):  # if the storage still fails, the study's next run closes the spares
                await self.thread.run(storage.close_spares)

    async def _run(
        self,
        study: optuna.Study,
        left: resuming.Resumption,
        remote: RemoteSearch | None,
        storage: DurableStorage | None,
    ) -> None:
        options, objective = self.options, self.objective
        is_checkpointed = remote is not None and remote.is_checkpointed
        has_total = storage is not None and options.resume and not is_checkpointed
        if not left.n_trials and not has_total:
            return
        runner = self._make_runner(remote)
        many_calls = storage is not None and storage.takes_many_calls and not options.deterministic
        n_writers = min(options.concurrency, _WRITERS) if many_calls else 0
        writers = Threads(limit=n_writers) if n_writers > 1 else None
        try:
            total = options.n_trials if has_total else left.n_trials + len(left.finished)
            tally = Tally(objective.name, total, study.directions, options.resume, is_kept(storage_of(study)))
            for trial in left.finished:
                tally.add(trial)
            own_samplers = options.deterministic and objective.takes_trial and options.makes_samplers
            with Reporter(tally, enabled=options.progress) as reporter:
                trials = AskTell(
                    study,
                    objective,
                    self.call.space,
                    options,
                    observer=reporter,
                    adopted=left.adopted,
                    adopts=_adopts(remote),
                    storage=storage,
                    total=options.n_trials if has_total else None,
                    points=self.call.taken,
                    sampler_of_trial=functools.partial(self._make_own_sampler, study) if own_samplers else None,
                )
                if options.warm_start is not None:
                    await self.thread.run(self._warm_start, trials.study, storage)
                if is_checkpointed:
                    trials.interrupted_are_lost = False  # a cancelled trial is not lost, but SIGTERM sets this to True
                loop = SearchLoop(
                    trials,
                    objective,
                    runner,
                    options,
                    n_trials=left.n_trials,
                    initial_points=self.call.points,
                    started=self.started,
                    commit=remote.commit if remote is not None and is_checkpointed else None,
                    thread=self.thread,
                    writers=writers,
                )
                if remote is not None:
                    remote.attach(loop)
                try:
                    await loop.run()
                    if has_total:
                        reporter.count_again(await self.thread.run(resuming.finished_in, trials.study))
                except (StorageUnavailableError, asyncio.CancelledError):
                    raise  # no storage; or a cancelled search, which has told its trials or leaves them RUNNING
                except BaseException:
                    if storage is not None:
                        await finish(functools.partial(self._close_strays, storage, study))
                    raise
                finally:
                    trials.failure_log.close()
        finally:
            await finish(runner.close)
            if writers is not None:
                await finish(writers.close)

    def _warm_start(self, study: optuna.Study, storage: DurableStorage | None) -> None:
        source = self.options.warm_start
        assert source is not None
        with storage.exclusive(study.study_name) if storage is not None else contextlib.nullcontext():
            constraints = () if self.objective.suggests_itself else self.options.constraints_of(self.objective)
            fixed = self.call.taken.fixed if self.call.taken is not None else None
            WarmStarter(study, self.objective, self.call.space, constraints, fixed).insert(source)

    def _make_own_sampler(self, study: optuna.Study, number: int) -> BaseSampler:
        """Return the sampler of one trial."""
        made = make_sampler(self.options, number + 1, is_constrained=bool(self.objective.returns.constraints))
        if isinstance(made, AutoSampler) and isinstance(study.sampler, AutoSampler):
            made.join(study.sampler)
        return made

    def _make_runner(self, remote: RemoteSearch | None) -> Runner:
        objective, options = self.objective, self.options
        if self.make_runner is not None:
            return self.make_runner(objective)
        if remote is not None:
            return remote.make_runner(objective)
        engine = host_engine(objective.target)
        make_runner = FunctionRunner if engine is None else engine.make_local_runner
        if options.executor == "process":
            from optuna_flyte_dsl.engines.process_runner import (
                ProcessRunner,  # loaded late: few searches need processes
            )

            return ProcessRunner(objective, make_runner, options.gpus)
        return make_runner(objective)


def _adopts(remote: RemoteSearch | None) -> Callable[[FrozenTrial], bool]:
    """Return the function that tells whether a dead process's trial can be continued."""
    return remote.adopts if remote is not None else lambda _: False


def taken_points(options: Options, objective: Objective, space: SearchSpace) -> TakenPoints | None:
    """Return the `TakenPoints` of a new search; `None` if no option needs the points that trials have tried."""
    constraints = options.constraints_of(objective)
    if options.duplicates == "allow" and not options.stop_when_exhausted and not constraints:
        return None
    return TakenPoints(space, options.duplicates, ends=options.stop_when_exhausted, constraints=constraints)
