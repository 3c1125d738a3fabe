"""Ray Tune with OptunaSearch on a local Ray, which keeps the processes of its trials."""

import time

import optuna
import ray
from _command_line import print_seconds
from ray import tune
from ray.tune.search.optuna import OptunaSearch


def search(n_trials: int, at_once: int, seconds: float) -> None:
    def objective(config: dict[str, float]) -> None:
        time.sleep(seconds)
        tune.report({"value": config["x"]})

    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="min",
            num_samples=n_trials,
            max_concurrent_trials=at_once,
            search_alg=OptunaSearch(sampler=optuna.samplers.RandomSampler()),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(verbose=0),
    )
    assert len(tuner.fit()) == n_trials


if __name__ == "__main__":
    ray.init(num_cpus=64, include_dashboard=False, log_to_driver=False, configure_logging=False)
    print_seconds(search)
    ray.shutdown()
