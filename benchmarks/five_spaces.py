"""Runs the blocks of the page that compares five spaces in four languages, and draws points: `python -m ...`."""

import collections
import contextlib
import pathlib
import re
import sys
import types

import optuna

from optuna_flyte_dsl import SearchSpace
from optuna_flyte_dsl.decorator import Optimized

PAGE = pathlib.Path(__file__).parent.parent / "docs/explanation/spaces.md"
N_POINTS = 300
BLOCK = re.compile(r"^```(python|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(name: str, code: list[str]) -> types.ModuleType:
    """Run blocks as one module, so that classes know where they are defined."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile("\n\n".join(code), f"<{name}>", "exec"), vars(module))
    return module


def draw_ours(module: types.ModuleType) -> int:
    search = next(each for each in reversed(vars(module).values()) if type(each) is Optimized)
    space = SearchSpace.of(search)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(N_POINTS):
        assert space.contains(space.suggest(study.ask()))
    return len(space)


def draw_spax(module: types.ModuleType) -> int:
    for seed in range(N_POINTS):
        module.Space.random(seed=seed)
    return len(module.Space.get_parameter_names())


def draw_configspace(module: types.ModuleType) -> int:
    module.space.seed(0)
    module.space.sample_configuration(N_POINTS)
    return len(module.space)


def draw_optuna(module: types.ModuleType) -> int:
    names: set[str] = set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(N_POINTS):
        trial = study.ask()
        with contextlib.suppress(optuna.TrialPruned):
            module.suggest(trial)
        names |= trial.params.keys()
    return len(names)


DRAW = {"this library": draw_ours, "SpaX": draw_spax, "ConfigSpace": draw_configspace, "Optuna": draw_optuna}


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    code: dict[str, list[str]] = collections.defaultdict(list)
    for number, section in enumerate(PAGE.read_text().split("\n## ")[1:6], start=1):
        for kind, block in BLOCK.findall(section):
            language = "this library" if kind == "python" else block.splitlines()[0].removeprefix("# ")
            code[language].append(block)
            if language != "this library" or "@optimize" in block:
                module = run(f"space_{number}_{re.sub(r'[^a-z]', '_', language.lower())}", code[language])
                lines = len([line for line in block.splitlines() if line.strip()])
                print(
                    f"{number}. {language}: {DRAW[language](module)} parameters, {lines} lines, {N_POINTS} points drawn"
                )


if __name__ == "__main__":
    main()
