"""Refuses unknown names of options, and finds the option that was meant."""

from collections.abc import Collection, Iterable, Mapping

from optuna_flyte_dsl._text import nearest
from optuna_flyte_dsl.errors import InvalidOptionError


def check_names(
    caller: str, names: Iterable[str], known: Collection[str], cure: str = "", *, cures: Mapping[str, str] | None = None
) -> None:
    """Check that a call names known options only.

    For each unknown name, the error suggests the option with the same meaning or with the most similar name, if any.
    """
    wrong = [name for name in names if name not in known]
    meant = {name: _nearest(name, known) for name in wrong}
    if wrong:
        said = [cures[name] for name in wrong if cures is not None and name in cures]
        said += [f"Did you mean `{option}`?" for name, option in meant.items() if option and name not in (cures or ())]
        if not said or None in [option for name, option in meant.items() if name not in (cures or ())]:
            said.append(cure or f"It has {', '.join(f'`{each}`' for each in known)}.")
        listed = " and no option ".join(f"`{name}`" for name in wrong)
        raise InvalidOptionError(f"`{caller}` has no option {listed}. {' '.join(said)}")


_SYNONYMS = {
    "n_jobs": "concurrency",
    "max_concurrency": "concurrency",
    "max_trials": "n_trials",
    "num_trials": "n_trials",
    "load_if_exists": "study_name",
}
"""Names that other libraries have for options of a search."""


def _nearest(name: str, known: Collection[str]) -> str | None:
    if (synonym := _SYNONYMS.get(name)) in known:
        return synonym
    return nearest(name, known)
