"""Search settings: `python -m ray_jobs.tune --config configs/tune/loss_weights.yaml key=value ...`.

Ctrl-C stops the sweep; `--resume SWEEP` goes on: finished trials are kept, the others go on from their
checkpoints. (A sweep's folder holds Ray Tune's pickled state: resume only what you have made yourself.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import optuna
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import ResultGrid, TuneError, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from dfmvr.data import storage
from ray_jobs.make_dataset import make_dataset
from ray_jobs.scaling import init_ray
from ray_jobs.shards import DataSetExistsError
from ray_jobs.train import STOPPED, check_data
from ray_jobs.tune_progress import SweepProgress
from ray_jobs.tune_report import terminal_table, write_results
from ray_jobs.tune_results import Summary, summarise
from ray_jobs.tune_sweep import Sweep, new_sweep, open_sweep, write_sweep
from ray_jobs.tune_trial import TRIAL_CPUS, trainable, worker_cpus

EXAMPLES = """examples:
  python -m ray_jobs.tune --config configs/tune/smoke.yaml
  python -m ray_jobs.tune --config configs/tune/loss_weights.yaml trials=24 settings.training.epochs=4
  python -m ray_jobs.tune --config configs/tune/ablation.yaml settings.training.runs=s3://bucket/runs
  python -m ray_jobs.tune --resume 20261231-235959-loss_weights-1a2b
  python -m ray_jobs.train --config runs/20261231-235959-loss_weights-1a2b/best.yaml
"""
_TUNE = "tune"
"""Folder of Ray Tune's state, in the sweep's."""


class SweepFailedError(RuntimeError):
    """Not one trial came to its end; the message says why the first failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, run, report; return the exit status."""
    arguments = parse(argv)
    try:
        if arguments.resume:
            sweep = open_sweep(arguments.resume)
        else:
            sweep = new_sweep(arguments.config, arguments.overrides, arguments.sweep_id)
        prepare_data(sweep, arguments.address)
        init_ray(arguments.address)
        results = run_sweep(sweep)
        summary = report(sweep, results)
    except (ValueError, OSError, DataSetExistsError, SweepFailedError, TuneError, RayError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not summary.complete:
        print(f"stopped; go on with --resume {sweep.uri}")
    return 0 if summary.complete else STOPPED


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.tune",
        description="Search settings: many short runs of ray_jobs.train, the best one's settings as a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config", metavar="FILE", help="a new sweep (YAML): base, space, searcher, scheduler"
    )
    which.add_argument(
        "--resume", metavar="SWEEP", help="go on with a sweep: its id, or its folder's address"
    )
    parser.add_argument(
        "--sweep-id", metavar="ID", help="id of the new sweep (default: time, name, random part)"
    )
    parser.add_argument("--address", help="a running Ray cluster (default: RAY_ADDRESS, else start one here)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the sweep's file, such as trials=8"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.resume and (arguments.sweep_id or arguments.overrides):
        parser.error("--resume goes on with the sweep as it is; expected neither --sweep-id nor key=value")
    return arguments


def prepare_data(sweep: Sweep, address: str | None) -> None:
    """Check the data of every base, and make them where the sweep says so.

    Raises:
        FileNotFoundError: there is no complete data set.
        ValueError: it does not fit the settings.
    """
    for base in sweep.bases.values():
        if sweep.tune.make_data:
            make_dataset(base.data.uri, base.synthetic, base.seed, address=address)
        check_data(base)


def run_sweep(sweep: Sweep) -> ResultGrid:
    """Run a sweep's trials, or those that are left, on the Ray cluster that this process is connected to.

    Raises:
        PreflightError: the cluster is too small.
    """
    for base in sweep.bases.values():
        worker_cpus(base.training, sweep.tune.concurrent, ray.cluster_resources())
    trial = tune.with_resources(trainable(sweep), {"CPU": TRIAL_CPUS})
    system, path = storage.filesystem(sweep.uri)
    state = storage.join(path, _TUNE)
    if storage.exists(sweep.path(_TUNE, "tuner.pkl")):
        tuner = Tuner.restore(state, trial, resume_unfinished=True, storage_filesystem=system)
    else:
        write_sweep(sweep)
        tuner = Tuner(
            trial,
            tune_config=build_search(sweep),
            run_config=tune.RunConfig(
                name=_TUNE,
                storage_path=path,
                storage_filesystem=system,
                callbacks=[SweepProgress(sweep, count_trials(sweep))],
                verbose=0,
            ),
        )
    print(f"sweep {sweep.id} in {sweep.uri}: {count_trials(sweep)} trials, {sweep.tune.concurrent} at a time")
    return tuner.fit()


def count_trials(sweep: Sweep) -> int:
    """Return how many points the sweep tries."""
    return len(sweep.space.grid()) if sweep.tune.searcher == "grid" else sweep.tune.trials


def build_search(sweep: Sweep) -> tune.TuneConfig:
    """Settings -> Ray Tune: searcher, scheduler, trials at a time."""
    settings = sweep.tune
    points = []
    if settings.searcher == "grid":
        points = sweep.space.grid()
    elif settings.try_base:
        points = [sweep.space.point_of(sweep.bases)]
    several = len(settings.objectives) > 1
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(
        space=sweep.space.suggest,
        metric=list(settings.objectives) if several else settings.objectives[0],
        mode=["min"] * len(settings.objectives) if several else "min",
        points_to_evaluate=points,
        sampler=build_sampler(settings.searcher, settings.seed, settings.trials),
    )
    return tune.TuneConfig(
        search_alg=search,
        scheduler=build_scheduler(sweep),
        num_samples=count_trials(sweep),
        max_concurrent_trials=settings.concurrent,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
    )


def build_sampler(searcher: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Return what draws the points; a grid's are all given beforehand."""
    if searcher == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, min(10, trials // 3)))
    return optuna.samplers.RandomSampler(seed=seed)


def build_scheduler(sweep: Sweep) -> TrialScheduler:
    """Return what ends trials early; time is counted in the trials' epochs."""
    settings = sweep.tune
    of: dict[str, Any] = {"time_attr": "epoch", "metric": settings.objectives[0], "mode": "min"}
    epochs = max(base.training.epochs for base in sweep.bases.values())
    match settings.scheduler:
        case "asha":
            if settings.grace_epochs >= epochs:
                raise ValueError(
                    f"sweep.grace_epochs: expected less than the trials' {epochs} epochs, got "
                    f"{settings.grace_epochs}"
                )
            # Nobody is judged at the last epoch: whoever gets there ends by itself and exports its model.
            return ASHAScheduler(
                **of,
                grace_period=settings.grace_epochs,
                max_t=epochs - 1,
                reduction_factor=settings.reduction,
                stop_last_trials=False,
            )
        case "median":
            # An endless slice: a trial that cannot be judged yet goes on, and is not put aside for others.
            return MedianStoppingRule(
                **of, grace_period=settings.grace_epochs, min_samples_required=2, min_time_slice=sys.maxsize
            )
        case _:
            return FIFOScheduler()


def report(sweep: Sweep, results: ResultGrid) -> Summary:
    """Write best.yaml, metrics.json and report.html; print the table.

    Raises:
        SweepFailedError: not one trial came to its end.
    """
    summary = summarise(sweep, results, count_trials(sweep))
    write_results(sweep, summary)
    print(f"\n{terminal_table(sweep, summary)}\n{sweep.path('report.html')}")
    if summary.complete and summary.best is None:
        raise SweepFailedError(f"no trial came to its end; the first failed: {summary.trials[0].reason}")
    if summary.best is not None:
        print(f"best settings: {sweep.path('best.yaml')}")
    return summary


if __name__ == "__main__":
    sys.exit(main())
