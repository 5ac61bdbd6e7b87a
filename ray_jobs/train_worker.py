"""What every training worker does: restore, train an epoch, validate, save, and again.

All workers take the same decisions at the same step: before every step they agree, with one tiny all-reduce,
whether each of them has a batch, whether somebody wants to stop and whether somebody has failed for good.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dfmvr.config import Settings, config_hash, settings_dict
from dfmvr.data.on_the_fly.generator import OnTheFly
from dfmvr.data.rejects import Rejects, TooManyBadRows
from dfmvr.networks.parser import FaceParser
from dfmvr.networks.weights import WeightsError
from dfmvr.reconstructor import Reconstructor, build_reconstructor
from dfmvr.threads import use_threads
from dfmvr.training.checkpoint import (
    CheckpointError,
    TrainingState,
    library_versions,
    load_checkpoint,
    save_checkpoint,
)
from dfmvr.training.optim import build_optimiser, learning_rate_at, set_learning_rate
from dfmvr.training.step import NonFiniteLossError, SkipCounter, StepResult, train_step
from dfmvr.training.validation import ValidationBatch, validation_means, validation_sums
from dfmvr.types import ViewBatch
from ray_jobs.making import made_batches, made_validation_batches
from ray_jobs.monitor import Event, Post
from ray_jobs.reading import iterate_batches, steps_per_epoch, validation_batches
from ray_jobs.runs import Run, fetch_checkpoint, newest_intact_checkpoint, store_checkpoint
from ray_jobs.survival import Alarm, PreemptionWatch, is_timeout, keep_batches, missing_ranks, suspects

_FATAL = (NonFiniteLossError, TooManyBadRows, CheckpointError, WeightsError)
"""Errors that would come again: the run ends in place of restarting its workers."""

_BATCHES_KEPT = 3
"""Batches of skipped steps that a worker keeps for inspection."""
_SAMPLES_TOLD = 8

_NOT_VALIDATED = sys.float_info.max
"""Validation loss that ranks last; Ray would store infinity as null, and fail on that when resuming."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to the workers."""

    run: Run
    settings: Settings
    """The run's, with local paths made absolute: workers run in other folders."""
    monitor: ActorHandle[Any]
    rows: dict[str, int]
    """Rows of every split."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the training split; batches that fill no step are left out."""
        training = self.settings.training
        return steps_per_epoch(self.rows["train"], self.settings.data, training.workers, training.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.settings.training.epochs


class PeerFailedError(RuntimeError):
    """Another worker has told why the run must end."""


def train_on_worker(config: dict[str, Job]) -> None:
    """Train the job in `config["job"]` to its end, or until somebody wants to stop (Ray Train calls this)."""
    work(Worker(config["job"]))


def work(worker: Worker) -> None:
    """Train to the end, or until somebody wants to stop, and tell what ends the run for good."""
    try:
        worker.restore()
        while worker.state.epoch < worker.settings.training.epochs:
            if not worker.train_epoch():
                worker.save({})
                break
            worker.finish_epoch()
    except PeerFailedError:
        pass
    except _FATAL as error:
        worker.tell("fatal", message=f"{type(error).__name__}: {error}", now=True)
    except RuntimeError as error:
        if is_timeout(error):
            worker.tell_who_hangs()
        raise
    worker.tell("end", now=True)


class Worker:
    """One rank of the training run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = job.settings
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        share_cores(context.get_local_world_size())
        torch.manual_seed(self.settings.seed)
        face_model_hash = self.build()
        self.optimiser = build_optimiser(self.network, self.settings.optimiser)
        self.state = TrainingState(
            run_id=job.run.id,
            settings=settings_dict(job.run.settings),
            config_hash=config_hash(job.run.settings),
            face_model_hash=face_model_hash,
            seed=self.settings.seed,
            versions=library_versions(),
        )
        self.skips = SkipCounter(self.settings.training.max_skipped_in_a_row)
        self.post = Post(job.monitor)
        self.rejects = {split: self._new_rejects(split) for split in ("train", "validation")}
        self.told_rejects = dict.fromkeys(self.rejects, 0)
        self.first_epoch = True
        self.start_id = secrets.token_hex(2)
        self.saved_at = (-1, -1)
        self.epoch_losses: list[float] = []
        training, batch_size = self.settings.training, self.settings.data.batch_size
        self.batches_per_step = training.batches_per_step(self.world_size)
        self.samples_per_step = batch_size * self.batches_per_step * self.world_size
        self.rate_factor = self.samples_per_step / (batch_size * training.accumulate * training.workers)
        self.preemption = PreemptionWatch()
        self.batches_kept = 0
        self.pace = Pace(self.samples_per_step)

    def build(self) -> str:
        """Make `network`, on the device, and what it is trained with; return the face model's hash."""
        shade_in_view = self.settings.training.shade_in_view
        self.reconstructor = build_reconstructor(
            self.settings.network, self.settings.face_model, shade_in_view
        )
        self.reconstructor.to(self.device).train()
        self.network: nn.Module = self.reconstructor.network
        if self.device.type == "cuda":  # the order that its convolutions compute in
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parser = None
        if self.settings.losses.needs_parser:
            self.parser = FaceParser.load(self.settings.parser.weights).to(self.device)
        return self.reconstructor.face_model.hash

    def restore(self) -> None:
        """Go on from the newest intact checkpoint, and make ready to train together."""
        checkpoints = self.job.run.checkpoints
        found: dict[str, Any] = {"name": None, "passed_over": []}
        if self.rank == 0:
            found["name"], found["passed_over"] = newest_intact_checkpoint(checkpoints)
        found = broadcast_from_rank_zero(found)
        for reason in found["passed_over"]:
            self.tell("warning", message=f"passed over: {reason}")
        if found["name"]:
            with tempfile.TemporaryDirectory() as folder:
                fetch_checkpoint(checkpoints, found["name"], Path(folder))
                saved = load_checkpoint(folder, self.network, self.optimiser)
            self._check_same_face_model(saved)
            current = {name: getattr(self.state, name) for name in ("settings", "config_hash", "versions")}
            self.state = dataclasses.replace(saved, **current)
            self.skips.total = saved.skipped_steps
        if self.world_size > 1:
            # The optimiser holds the same parameters as the wrapped network: wrapping does not replace them.
            self.use(DistributedDataParallel(self.network, gradient_as_bucket_view=True))
        else:
            self.use(self.network)
        origin = f"from {found['name']}" if found["name"] else "from the start"
        self.tell("start", {"pid": os.getpid()}, f"{self.world_size} workers train {origin}")

    def use(self, network: nn.Module) -> None:
        """Train through `network`, which may be `self.network` wrapped for several workers."""
        plain = self.reconstructor
        self.trained = Reconstructor(network, plain.face_model, plain.renderer, plain.shade_in_view)

    def train_epoch(self) -> bool:
        """Train from the current position to the end of the epoch.

        Returns:
            Whether the end was reached; False when somebody wanted to stop.
        """
        with Alarm(2 * self.settings.training.hang_timeout_s) as alarm:
            return self._train_epoch(alarm)

    def _train_epoch(self, alarm: Alarm) -> bool:
        batches = self._training_batches()
        every = self.settings.training.checkpoint_every_steps
        self.pace.start()
        while True:
            alarm.rewind()
            group, error = _next_group(batches, self.batches_per_step)
            ended, stop, failed, ask = self._agree(
                not group, self.post.stop_requested, error is not None, self.preemption.is_due()
            )
            if failed:
                raise error or PeerFailedError
            if ended:
                return True
            if stop:
                return False
            self._step([batch.to(self.device) for batch in group])
            done = self.state.samples_in_epoch // self.samples_per_step
            if ask and (news := self.preemption.ask()):
                self.tell("warning", message=f"{news}; a checkpoint is written now", now=True)
                self.save({})
            if self.state.step % every == 0 and done < self.job.steps_per_epoch:
                self.save({})
                self.pace.start()

    def finish_epoch(self) -> None:
        """Validate where it is due, and save."""
        epoch = self.state.epoch + 1
        figures = {"epoch": float(epoch), "step": float(self.state.step)}
        if self.epoch_losses:
            figures["train_loss"] = sum(self.epoch_losses) / len(self.epoch_losses)
        training = self.settings.training
        if epoch % training.validate_every_epochs == 0 or epoch == training.epochs:
            figures |= self._validate()
        history = (*self.state.history, figures)
        self.state = dataclasses.replace(self.state, epoch=epoch, samples_in_epoch=0, history=history)
        self.epoch_losses = []
        self._tell_rejects()
        shown = {name: value for name, value in figures.items() if name not in ("epoch", "step")}
        self.tell("epoch", shown)
        self.save(shown)

    def save(self, figures: dict[str, float]) -> None:
        """Write a checkpoint (rank 0) and report it to Ray Train (every rank, the same number of times).

        A storage that fails costs this checkpoint, not the run. Names differ between starts of a run, and a
        position is saved once in each: Ray must never hold two checkpoints in one folder.
        """
        if self.saved_at == (self.state.epoch, self.state.samples_in_epoch):
            return
        self.saved_at = (self.state.epoch, self.state.samples_in_epoch)
        self.state = dataclasses.replace(
            self.state, skipped_steps=self.skips.total, seconds=self.state.seconds + self.pace.take_seconds()
        )
        name = f"{self.state.name}-{self.start_id}"
        stored = self.rank == 0 and self._store(name)
        place = ray.train.get_context().get_storage()
        checkpoint = (
            Checkpoint(f"{place.experiment_fs_path}/{name}", place.storage_filesystem) if stored else None
        )
        metrics = {"val_loss": _NOT_VALIDATED, **figures, "epoch": self.state.epoch, "step": self.state.step}
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def tell(
        self, kind: str, values: dict[str, float] | None = None, message: str = "", *, now: bool = False
    ) -> None:
        """Send an event to the driver; other workers than rank 0 send warnings and what ended the run."""
        if self.rank == 0 or kind in ("warning", "fatal"):
            self.post.send(Event(kind, self.state.step, self.state.epoch, values or {}, message), now=now)

    def _step(self, batches: list[ViewBatch]) -> None:
        step = self.state.step
        # A step of more or fewer samples than the settings' is as much longer or shorter (Goyal et al. 2017).
        learning_rate = self.rate_factor * learning_rate_at(
            step, self.job.total_steps, self.settings.optimiser
        )
        set_learning_rate(self.optimiser, learning_rate)
        self.pace.mark_data()
        result = self.optimise(batches)
        self.pace.mark_step()
        samples = self.state.samples_in_epoch + self.samples_per_step
        self.state = dataclasses.replace(self.state, step=step + 1, samples_in_epoch=samples)
        if result.skipped:
            self._tell_skipped(batches, result)
        else:
            self.epoch_losses.append(result.loss)
        self._tell_step(result, learning_rate)
        self.skips.count(result, self.state.step)

    def _tell_skipped(self, batches: list[ViewBatch], result: StepResult) -> None:
        """Tell of a skipped step where its cause is, and keep the batches of the first ones."""
        bad = result.bad_terms
        somewhere = any(self._agree(bool(bad)))
        if somewhere and not bad:
            return  # the cause is another worker's
        what = f"term {', '.join(bad)}" if bad else "gradients of finite terms"
        text = f"step {self.state.step} skipped: rank {self.rank}, {what} not finite; samples "
        text += ", ".join(suspects(batches)[:_SAMPLES_TOLD])
        if self.batches_kept < _BATCHES_KEPT:
            self.batches_kept += 1
            name = f"not-finite-step{self.state.step}-rank{self.rank}"
            try:
                text += f"; kept in {keep_batches(self.job.run.path('logs'), name, batches)}"
            except OSError as error:
                text += f"; not kept: {error}"
        self.tell("warning", message=text)

    def tell_who_hangs(self) -> None:
        """Tell which workers did not answer this one and others."""
        missing = missing_ranks(self.job.monitor, self.rank, self.world_size, self.state.step)
        if missing is not None:
            seconds = self.settings.training.hang_timeout_s
            ranks = ", ".join(map(str, missing)) or "unknown"
            text = f"no answer within {seconds} s after step {self.state.step} from rank {ranks}"
            self.tell("warning", message=f"{text}; the workers are started anew", now=True)

    def optimise(self, batches: list[ViewBatch]) -> StepResult:
        """Move the weights once."""
        training = self.settings.training
        losses = training.losses_at(self.state.step, self.job.total_steps, self.settings.losses)
        clip_norm = self.settings.optimiser.clip_norm
        return train_step(
            self.trained, batches, self.optimiser, losses, clip_norm, training.precision, self.parser
        )

    def validation_sums(self, batches: Iterator[ValidationBatch]) -> Tensor:
        """Add up the validation figures of some batches, to be added over workers."""
        return validation_sums(self.reconstructor, batches, self.settings.losses, self.parser)

    def validation_means(self, sums: Tensor) -> dict[str, float]:
        """Turn all workers' sums into figures by name, `val_loss` among them."""
        return validation_means(sums)

    def _tell_step(self, result: StepResult, learning_rate: float) -> None:
        values = {"loss": result.loss, "gradient_norm": result.gradient_norm, "learning_rate": learning_rate}
        values |= {f"loss/{name}": value for name, value in result.terms.items()}
        self.tell("step", {**values, **self.pace.figures(), "skipped_steps": self.skips.total})

    def _training_batches(self) -> Iterator[ViewBatch]:
        data = self.settings.data
        if data.on_the_fly:
            return made_batches(
                self._maker,
                data,
                self.job.rows["train"],
                epoch=self.state.epoch,
                seed=self.settings.seed,
                rank=self.rank,
                world_size=self.world_size,
                skip_batches=self.state.samples_in_epoch // (data.batch_size * self.world_size),
            )
        return iterate_batches(
            ray.train.get_dataset_shard("train"),
            data,
            epoch=self.state.epoch,
            seed=self.settings.seed,
            rejects=self.rejects["train"],
            rank=self.rank,
            skip_batches=self.state.samples_in_epoch // (data.batch_size * self.world_size),
            augment=data.augment,
            device=self.device,
        )

    def _validation_batches(self) -> Iterator[ValidationBatch]:
        data = self.settings.data
        if data.on_the_fly:
            rows, seed = self.job.rows["validation"], self.settings.seed
            return made_validation_batches(self._maker, data, rows, seed, self.rank, self.world_size)
        return validation_batches(ray.train.get_dataset_shard("validation"), data, self.rejects["validation"])

    @functools.cached_property
    def _maker(self) -> OnTheFly:
        return OnTheFly(self.settings.data, self.settings.synthetic, self.settings.seed).to(self.device)

    def _validate(self) -> dict[str, float]:
        """Return the validation figures over all workers, of rank 0's network."""
        for buffer in self.network.buffers():
            if self.world_size > 1:
                torch.distributed.broadcast(buffer, 0)
        on_device = (batch.to(self.device) for batch in self._validation_batches())
        sums, error = torch.empty(0), None
        try:
            sums = self.validation_sums(on_device)
        except TooManyBadRows as raised:  # told to the others, who would wait for this worker's sums
            error = raised
        if any(self._agree(error is not None)):
            raise error or PeerFailedError
        sums = sums.to(self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        return self.validation_means(sums)

    def _new_rejects(self, split: str) -> Rejects:
        uri = self.job.run.path("logs", f"rejects-{split}-rank{self.rank}.jsonl")
        return Rejects(self.settings.data.max_bad_share, self.job.rows[split], uri)

    def _tell_rejects(self) -> None:
        """Tell of the bad rows that are new, and end the run when all workers' together are too many.

        Raises:
            TooManyBadRows: on every worker.
        """
        for split, rejects in self.rejects.items():
            if len(rejects.items) > self.told_rejects[split]:
                self.told_rejects[split] = len(rejects.items)
                text = f"{len(rejects.items)} bad rows of the {split} split left out, listed in {rejects.uri}"
                self.tell("warning", message=text)
        # Each worker has met its own part of the rows in its first epoch; later parts overlap.
        if self.first_epoch and self.world_size > 1:
            count = torch.tensor(len(self.rejects["train"].items), device=self.device)
            torch.distributed.all_reduce(count)
            self.rejects["train"].check(int(count))
        self.first_epoch = False

    def _agree(self, *flags: bool) -> list[bool]:
        """Return for every flag whether any worker has raised it."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def _store(self, name: str) -> bool:
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                save_checkpoint(folder, self.network, self.optimiser, self.state)
                store_checkpoint(Path(folder), self.job.run.checkpoints, name)
        except OSError as error:
            count = self.state.failed_checkpoints + 1
            self.state = dataclasses.replace(self.state, failed_checkpoints=count)
            self.tell("warning", message=f"checkpoint {name} not stored, training goes on: {error}")
            return False
        self.tell("checkpoint", {"checkpoint_seconds": time.monotonic() - started}, now=True)
        return True

    def _check_same_face_model(self, saved: TrainingState) -> None:
        if saved.face_model_hash != self.state.face_model_hash:
            raise CheckpointError(
                f"run {saved.run_id}: trained with face model {saved.face_model_hash}, "
                f"but the settings name {self.state.face_model_hash}"
            )


class Pace:
    """Samples per second, and where the time goes: medians over the last steps."""

    def __init__(self, samples_per_step: int) -> None:
        self._samples = samples_per_step
        self._data: deque[float] = deque(maxlen=20)
        self._steps: deque[float] = deque(maxlen=20)
        self._last = self._saved = time.monotonic()

    def start(self) -> None:
        """Forget the time that was spent on other things."""
        self._last = time.monotonic()

    def mark_data(self) -> None:
        """A batch has come."""
        self._data.append(self._lap())

    def mark_step(self) -> None:
        """The step is done."""
        self._steps.append(self._lap())

    def figures(self) -> dict[str, float]:
        """Return samples/s of all workers, and milliseconds of waiting for data and of computing."""
        data, step = statistics.median(self._data), statistics.median(self._steps)
        rate = self._samples / max(1e-9, data + step)
        return {"samples_per_second": rate, "data_ms": 1000 * data, "step_ms": 1000 * step}

    def take_seconds(self) -> float:
        """Return the seconds since the last call."""
        now = time.monotonic()
        seconds, self._saved = now - self._saved, now
        return seconds

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds


def share_cores(workers_on_node: int) -> None:
    """Give torch and numba this process's share of the node's cores: more threads than cores are slower."""
    use_threads(max(1, len(os.sched_getaffinity(0)) // workers_on_node))


def _next_group(batches: Iterator[ViewBatch], count: int) -> tuple[list[ViewBatch], TooManyBadRows | None]:
    """Return the batches of a step; none at the end, where less than `count` are left, or after an error."""
    try:
        group = list(itertools.islice(batches, count))
    except TooManyBadRows as error:
        return [], error
    return group if len(group) == count else [], None
