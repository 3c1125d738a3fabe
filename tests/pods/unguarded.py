"""A script that starts its search wherever it is imported."""

from __future__ import annotations

import sys

import flytekit as fl
from flytekit.configuration import Config, Image, ImageConfig, PlatformConfig
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl import Float, Minimize, optimize


@optimize(concurrency=2, n_trials=2)
@fl.task
def train(x: Float(0, 1)) -> Minimize:
    return x


endpoint, folder = sys.argv[1:3] if len(sys.argv) == 3 else ("127.0.0.1:1", "/tmp")
remote = FlyteRemote(Config(PlatformConfig(endpoint, insecure=True)), "project", "development", folder)
study = train.on(remote, image_config=ImageConfig(Image("default", "example.com/image", "1"))).run_sync()
sys.stdout.write("\n".join(trial.user_attrs["optuna_flyte_dsl:error"] for trial in study.trials))
