"""The pauses and time limits of the library, in one object whose fields a test can set."""


class Pauses:
    """The times that the library waits, in seconds. Read the fields of the instance `pauses` at each use."""

    # Storages.
    storage_patience: float = 600.0  # how long an outage is waited out
    storage_opening: float = 10.0  # how long an outage is waited out before the first trial: the address may be wrong
    storage_patience_at_end: float = 2.5  # how long an outage is waited out while a search ends: the user waits
    storage_warning: float = 1.0  # the duration of an outage after which it is logged
    storage_first: float = 0.05  # the first pause between two attempts of a call; each next one is twice as long
    storage_longest: float = 5.0  # the longest pause between two attempts of a call
    storage_silence: float = 30.0  # how long a call may be left without any answer when the search ends
    silence_check: float = 0.25  # between two checks for a storage call without any answer
    code_at_end: float = 10.0  # how long a sampler or a callback may take to return when a search is cancelled
    at_last: tuple[float, ...] = (0.1, 0.5, 2.0)  # between attempts to tell a trial after its search ended in an error

    # The event loop of a search over an async function.
    loop_check: float = 0.1  # between two looks whether the loop is blocked
    loop_block: float = 1.0  # how late such a look must be for a warning

    # The process in which a GPSampler samples.
    sampler_idle: float = 120.0  # how long the process is kept without a request: its start takes 2.5 % of that
    sampler_patience: float = 600.0  # how long a point is waited for in a search that repeats exactly

    # How often other processes are checked.
    lock_check: float = 1.0  # between two checks of the connection that holds a database lock
    lock_patience: float = 15.0  # a lock that was free at each check for this long proves that its owner is dead
    other_processes: float = 1.0  # between two checks whether another process has left trials to run
    parent_check: float = 0.5  # between two checks by a worker process that its parent is alive

    # The end of a process.
    exit_patience: float = 10.0  # how long Python's exit waits for a search to tell its trials
    server_check: float = 1.0  # between two checks of the trial server for calls whose message has not arrived
    server_silence: float = 10.0  # how long the message of a call to the trial server may take
    server_stranger: float = 10.0  # how long a connection to the trial server may show no token
    server_files: float = 1.0  # how long the trial server accepts no connection when open files are used up
    # The time limit of a trial's call to its search: the search waits out an outage of its storage meanwhile.
    server_call: float = 660.0
    server_reach: float = 60.0  # how long a trial tries to reach its search
    server_pause: float = 2.0  # the longest pause between two attempts of a trial to reach its search
    server_close: float = 2.0  # how long the end of the trial server is waited for
    ending_rpc: float = 5.0  # the time limit of a request to flyteadmin while the pod is ending

    # flyteadmin.
    successor_check: float = 1.0  # between two checks, while a pod ends, whether its next attempt has begun
    rpc: float = 30.0  # the time limit of a request to flyteadmin
    last_termination: float = 1.0  # the time limit of a termination after the grace period
    launch_rpc: float = 10.0  # the time limit of a launch, or of a termination, of an execution
    admin_first: float = 0.2  # the first pause between two attempts of a request; each next one is twice as long
    admin_longest: float = 15.0  # the longest pause between two attempts of a request
    admin_warning: float = 5.0  # the duration of an outage after which it is logged
    poll_shortest: float = 0.2  # the shortest time between two polls of the running executions
    poll_longest: float = 5.0  # the longest time between two polls
    full_launch_plan: float = 1.0  # between two attempts to launch a launch plan that allows no more executions at once
    replica_lag: float = 15.0  # how long flyteadmin may not find an execution that it has just created
    list_call: float = 0.2  # the least time between two calls of `ListExecutions`, on average
    poller_close: float = 1.0  # how long the end of the poller's thread is waited for

    # Progress display, Deck and checkpoints.
    progress_line: float = 10.0  # the least time between two log lines of a search's progress
    deck: float = 10.0  # the least time between two writes of the Deck
    deck_end: float = 5.0  # how long the end of the last write of the Deck is waited for
    checkpoint_retries: tuple[float, ...] = (0.2, 1.0, 3.0)  # between attempts to read or write a checkpoint
    checkpoint_patience: float = 600.0  # how long an outage of the blob store is waited out to read a checkpoint
    checkpoint_idle: float = 5.0  # the thread that writes checkpoints ends after this long without work


pauses = Pauses()
