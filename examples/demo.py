"""What `make demo` shows: a search on real data, four trials at a time, that is killed in the middle and resumed.

python examples/demo.py
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import flytekit as fl
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

from optuna_flyte_dsl import Category, Float, Maximize, optimize

JOURNAL = os.environ.get("DEMO_JOURNAL", "demo.journal")
N_TRIALS, KILL_AFTER = 30, 10


def show(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Print a line for a finished trial. The search calls `show` as a callback."""
    params = ", ".join(f"{name}={value:.2g}" for name, value in trial.params.items() if isinstance(value, float))
    print(f"  trial {trial.number:2}  accuracy {trial.value:.4f}  {params}, {trial.params['kernel']}", flush=True)


@optimize(concurrency=4, n_trials=N_TRIALS, seed=3, storage=JOURNAL, resume=True, callbacks=[show], progress=False)
@fl.task
def train(
    C: Float(1e-3, 1e3, log=True),  # noqa: N803 - scikit-learn's name
    gamma: Float(1e-5, 1e-1, log=True),
    kernel: Category(["rbf", "poly"]),
) -> Maximize:
    """Return the accuracy of a support vector machine that reads handwritten digits, by cross-validation."""
    return accuracy(SVC(C=C, gamma=gamma, kernel=kernel))


def accuracy(model: SVC) -> float:
    """Return a model's mean accuracy over three folds of the 1,797 images."""
    features, digits = load_digits(return_X_y=True)
    return float(cross_val_score(model, features, digits, cv=3).mean())


def run_until(finished: int, journal: str) -> bool:
    """Run the search in another process; kill the process after `finished` trials. Return whether it was killed."""
    environment = {**os.environ, "DEMO_JOURNAL": journal}
    with subprocess.Popen(
        [sys.executable, __file__, "search"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout, start=1):
            print(line, end="", flush=True)
            if count == finished:
                process.send_signal(signal.SIGKILL)
                return True
    return False


def look(journal: str) -> list[optuna.trial.FrozenTrial]:
    """Load the trials from the journal, and print how many are in which state."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    study = optuna.load_study(study_name="train", storage=storage)
    trials = study.trials
    states = [trial.state.name for trial in trials]
    print(
        "The study has " + ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) + ".",
        flush=True,
    )
    return trials


def demo() -> None:
    """Run a search, kill its process, resume the search, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        journal = str(pathlib.Path(folder, "demo.journal"))
        print(f"\nA search for {N_TRIALS} trials, 4 at a time, on 1,797 images of handwritten digits:\n", flush=True)
        started = time.monotonic()
        run_until(KILL_AFTER, journal)
        print("\nIts process was killed by SIGKILL, in the middle of its trials.", flush=True)
        look(journal)
        print("\nThe same search again. Python starts, and the search goes on where it was:\n", flush=True)
        run_until(N_TRIALS, journal)
        seconds = time.monotonic() - started
        print(flush=True)
        trials = look(journal)
    done = [trial for trial in trials if trial.state is optuna.trial.TrialState.COMPLETE]
    busy = sum((trial.duration.total_seconds() for trial in done if trial.duration), 0.0)
    best = max(done, key=lambda trial: trial.value or 0.0)
    print(
        f"{len(done)} trials have finished: what was asked for. Those that the kill interrupted are FAIL, and were "
        f"tried again.\nOne after the other, the trials would have taken {busy:.0f} s. Four at a time, and with two "
        f"starts of Python, they took {seconds:.0f} s.\n\nAccuracy with scikit-learn's defaults: {accuracy(SVC()):.4f}"
        f"\nAccuracy of the best trial:            {best.value:.4f}, number {best.number}\n"
        "\nThis was examples/demo.py. Next: docs/tutorial.md, ten minutes; examples/quickstart.py, with pyflyte."
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["search"]:
        train.run_sync()
    else:
        demo()
