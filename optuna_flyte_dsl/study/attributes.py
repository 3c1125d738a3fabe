"""The names of all attributes that this library writes into studies and trials. All start with `optuna_flyte_dsl:`."""

PREFIX = "optuna_flyte_dsl:"

# User attributes of a trial.
ERROR = f"{PREFIX}error"  # why the trial failed, in at most 2,000 characters
TRACEBACK = f"{PREFIX}traceback"  # the traceback of the trial's error, with the frames of the user's code
ATTEMPTS = f"{PREFIX}attempts"  # why each attempt of the trial but the last one failed: a list of strings
LOST = f"{PREFIX}lost"  # True if the trial failed only because its search or process ended: the trial does not count
RETRY_OF = f"{PREFIX}retry_of"  # the number of the lost trial whose parameters this trial tries again
OUTCOME = f"{PREFIX}outcome"  # {"state", "values"} of a deterministic search's trial that waits for its turn to be told
FIXED_ARGUMENTS = f"{PREFIX}fixed"  # a hash of the fixed arguments, if the search looks for points tried already
WARM_START = f"{PREFIX}warm_start"  # {"study", "trial", "begun"} of the inserted earlier trial; it does not count
SAME_AS = f"{PREFIX}same_as"  # the number of the finished trial whose values this trial took over
EXECUTIONS = f"{PREFIX}executions"  # the trial's executions in launching order: a list of {"name", "url"}
EXECUTION_ERROR = f"{PREFIX}execution_error"  # Flyte's error: see `ExecutionFailedError.summary`

# System attributes of a trial.
OWNER = f"{PREFIX}owner:"  # the prefix of the attribute that names the trial's process; a session id follows
REQUEST = f"{PREFIX}request"  # an id of the request that stored an enqueued trial, so that none is stored twice
GIVEN_BACK = f"{PREFIX}given_back"  # True if a search has set the trial to WAITING, as the study had a trial too many
PRUNED = f"{PREFIX}pruned"  # the name of the execution in whose pod the trial's task has raised `TrialPruned`

# User attributes of a study.
GOALS = f"{PREFIX}goals"  # a list: how many finished trials the study is to have at the end of each call
IDENTITY = f"{PREFIX}identity"  # an id of the study that is unique among all studies
ORDINALS = f"{PREFIX}ordinals"  # the choices of each `Ordinal` by its name, in their order: trials store an index
ARGUMENTS = f"{PREFIX}arguments"  # the fixed arguments of the study's first search
SAMPLERS = f"{PREFIX}samplers"  # the names of the samplers that an `AutoSampler` has used, in the order of their use
