"""The search itself: Ray started safely; space, scheduler and searcher as Ray Tune wants them; how it goes on."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_cdsr import quick_start
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.tune.plan import Search
from recbole_cdsr.tune.space import Axis, active, grid
from recbole_cdsr.tune.trial import EPOCH, ERROR, SCORE, run_trial

EXPERIMENT = "ray"  # folder of Ray's own state
# Keys that pbt may change in training; others, such as sizes, come with the weights.
MUTABLE = ("learning_rate", "weight_decay", "hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "temperature")
MUTABLE += ("cross_domain_weight", "mask_ratio", "n_negatives")
HALVING = 3  # of asha: one trial of three goes on at each rung


@contextmanager
def ray_started(address: str | None, dashboard: bool, gpus: bool):
    """Ray on this machine alone, reachable from it alone; or the cluster at an address; or the one that runs already.

    Raises:
        CDSRError: if ray is missing, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:  # read when ray is imported: 127.0.0.1 stays what it is, instead of an address of the network
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise CDSRError("a search needs ray; run: pip install 'recbole-cdsr[tune]'") from None
    if ray.is_initialized():
        yield ray
        return
    keys: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if address:
        keys["address"] = address
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        keys |= {"address": "local", "num_cpus": cores, "_node_ip_address": "127.0.0.1"}
        keys |= {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
        if not gpus:
            keys["num_gpus"] = 0
    try:
        ray.init(**keys)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CDSRError(f"Ray cannot be reached ({reason}); check --ray_address, or leave it out") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def run(search: Search, out: Path, resume: bool, concurrent: int | None) -> Any:
    """Trains the trials; Ray must be started.

    Returns:
        Ray's ResultGrid.
    """
    from ray import tune

    # Parameters lie in Ray's object store, once for each node.
    parts = _parts(search) if search.shares_data() else None
    trial = tune.with_parameters(run_trial, search=search, out=str(out.resolve()), parts=parts)
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


def _parts(search: Search) -> list:
    """The data, loaded and split once."""
    _, loaders = quick_start.prepare(search.config({}))
    return [loader.dataset for loader in loaders]


def _space(search: Search) -> dict[str, Any]:
    from ray import tune

    if search.search == "grid":
        return {"point": tune.grid_search(grid(search.space))}
    return {key: _domain(axis) for key, axis in search.space.items()}


def _domain(axis: Axis) -> Any:
    from ray import tune

    return tune.choice(list(axis.values)) if axis.kind == "choice" else getattr(tune, axis.kind)(*axis.values)


def _scheduler(search: Search) -> Any:
    from ray.tune import schedulers

    longest = search.config({})["epochs"]
    grace = min(search.grace_epochs, longest)
    if search.scheduler == "asha":
        return schedulers.ASHAScheduler(EPOCH, max_t=longest, grace_period=grace, reduction_factor=HALVING)
    if search.scheduler == "median":
        return schedulers.MedianStoppingRule(EPOCH, grace_period=grace)
    if search.scheduler == "pbt":
        mutations = {key: _domain(axis) for key, axis in search.space.items() if key in MUTABLE}
        if not mutations:
            raise CDSRError(f"pbt changes {', '.join(MUTABLE)} in training; put one of them into the space")
        keys = {"perturbation_interval": grace, "hyperparam_mutations": mutations, "synch": False}
        return schedulers.PopulationBasedTraining(EPOCH, **keys)
    return schedulers.FIFOScheduler()


def _searcher(search: Search, concurrent: int | None) -> Any:
    try:
        if search.search == "optuna":
            from ray.tune.search.optuna import OptunaSearch

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
            self.search, self.ended = search, 0

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            last = trial.last_result or {}
            what = last.get(ERROR) or f"{last.get(SCORE, 0.0):.4f} after {last.get(EPOCH, 0)} epochs"
            self._tell(trial, what)

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            self._tell(trial, "its process died too often")

        def _tell(self, trial, what: str) -> None:
            self.ended += 1
            point = active(trial.config.get("point", trial.config), self.search.space)
            keys = ", ".join(
                f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
                for key, value in point.items()
            )
            print(f"[{self.ended}] {trial.trial_id}: {what} ({keys})", file=sys.stderr, flush=True)

    return Teller
