"""The search itself: space, scheduler and searcher as Ray Tune wants them; how it goes on."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.tune.plan import MUTABLE, Search
from recbole_cdsr.tune.space import Axis, active, grid
from recbole_cdsr.tune.trial import EPOCH, ERROR, SCORE, TrialData, run_trial

EXPERIMENT = "ray"  # folder of Ray's own state
HALVING = 3  # of asha: one trial of three goes on at each rung


def run(search: Search, out: Path, data: TrialData, resume: bool, concurrent: int | None) -> Any:
    """Trains the trials; Ray must be started.

    Args:
        data: of a trial that changes no key of the data.

    Returns:
        Ray's ResultGrid.
    """
    from ray import tune

    # Parameters lie in Ray's object store, once for each node.
    shared = data if search.shares_data() else None
    trial = tune.with_parameters(run_trial, search=search, out=str(out.resolve()), data=shared)
    trial = tune.with_resources(trial, {"cpu": search.cpus_per_trial, "gpu": search.gpus_per_trial})
    path = out.resolve() / EXPERIMENT
    if resume and tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trial, resume_unfinished=True, resume_errored=True)
    else:
        config = tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=1 if search.search == "grid" else search.samples,
            scheduler=_scheduler(search),
            search_alg=_searcher(search, concurrent),
            max_concurrent_trials=None if search.search == "random" else concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
            reuse_actors=True,
        )
        run_config = tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(out.resolve()),
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            verbose=0,
            callbacks=[_teller()(search)],
        )
        tuner = tune.Tuner(trial, param_space=_space(search), tune_config=config, run_config=run_config)
    return tuner.fit()


def _space(search: Search) -> dict[str, Any]:
    from ray import tune

    if search.search == "grid":
        return {"point": tune.grid_search(grid(search.space))}
    return {key: _domain(axis) for key, axis in search.space.items()}


def _domain(axis: Axis) -> Any:
    from ray import tune

    if axis.kind == "choice":
        return tune.choice(axis.names())
    return getattr(tune, axis.kind)(*axis.values)


def _scheduler(search: Search) -> Any:
    from ray.tune import schedulers

    longest = search.config({})["epochs"]
    grace = min(search.grace_epochs, longest)
    if search.scheduler == "asha":
        return schedulers.ASHAScheduler(EPOCH, max_t=longest, grace_period=grace, reduction_factor=HALVING)
    if search.scheduler == "median":
        return schedulers.MedianStoppingRule(EPOCH, grace_period=grace)
    if search.scheduler == "pbt":
        changed = {key: axis for key, axis in search.space.items() if key in MUTABLE}
        mutations = {key: a.names() if a.kind == "choice" else _domain(a) for key, a in changed.items()}
        keys = {"perturbation_interval": grace, "hyperparam_mutations": mutations, "synch": False}
        # Ray multiplies by 0.8 or 1.2 and may leave the space.
        keys["custom_explore_fn"] = lambda drawn: drawn | {key: a.settled(drawn[key]) for key, a in changed.items()}
        return schedulers.PopulationBasedTraining(EPOCH, **keys)
    return schedulers.FIFOScheduler()


def _searcher(search: Search, concurrent: int | None) -> Any:
    try:
        if search.search == "optuna":
            import optuna
            from ray.tune.search.optuna import OptunaSearch

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            warnings.filterwarnings("ignore", message="The reported value is ignored")  # Ray reports a last epoch twice
            return OptunaSearch(seed=search.seed)
        if search.search == "hyperopt":
            from ray.tune.search.hyperopt import HyperOptSearch

            return HyperOptSearch(random_state_seed=search.seed)
    except (ImportError, AssertionError):
        raise CDSRError(f"--search {search.search} needs {search.search}; run: pip install {search.search}") from None
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(max_concurrent=concurrent or 0, random_state=search.seed)


def _teller() -> type:
    """The class of the callback that prints a line for every trial that ends."""
    from ray import tune

    class Teller(tune.Callback):
        def __init__(self, search: Search) -> None:
            self.search = search

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            last = trial.last_result or {}
            what = last.get(ERROR) or f"{last.get(SCORE, 0.0):.4f} after {last.get(EPOCH, 0)} epochs"
            self._tell(trials, trial, what)

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            self._tell(trials, trial, "its process died too often")

        def _tell(self, trials, trial, what: str) -> None:
            ended = sum(one is trial or one.is_finished() for one in trials)
            point = active(trial.config.get("point", trial.config), self.search.space)
            keys = ", ".join(
                f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
                for key, value in point.items()
            )
            print(f"[{ended}] {trial.trial_id}: {what} ({keys})", file=sys.stderr, flush=True)

    return Teller
