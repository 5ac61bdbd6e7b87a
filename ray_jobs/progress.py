"""The driver's view of training: a progress bar, TensorBoard logs and printed lines."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ray_jobs.monitor import Event
from ray_jobs.runs import Run, upload_folder

LOG_PAUSE_S = 20.0
"""Between attempts at logs that cannot be written."""
TERMS_SHOWN = 4
"""Largest terms of the loss in the bar; TensorBoard has them all."""


class Progress:
    """Shows events as they come; a context manager that closes the logs.

    Args:
        run: the run; its logs go to `logs/` in its folder (uploaded at the end where that is in s3).
        total_steps: optimiser steps of the whole run.
        first_step: steps already done when the run is resumed.
    """

    def __init__(self, run: Run, total_steps: int, first_step: int) -> None:
        self._run = run
        self._temporary = tempfile.TemporaryDirectory() if "://" in run.uri else None
        self._folder = self._temporary.name if self._temporary else run.path("logs")
        self._writer = SummaryWriter(self._folder, purge_step=first_step)
        self._broken_until = 0.0
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stdout,
            mininterval=0.5 if sys.stdout.isatty() else 15.0,
        )  # fmt: skip
        self.fatal = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # told when it began
            self._writer.close()
        if self._temporary:
            upload_folder(Path(self._temporary.name), self._run.path("logs"))
            self._temporary.cleanup()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stdout)

    def show(self, events: Sequence[Event]) -> None:
        """Show events in order."""
        for event in events:
            match event.kind:
                case "step":
                    self._show_step(event)
                case "epoch":
                    self._scalars("validation", event)
                    figures = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
                    self.say(f"epoch {event.epoch}: {figures}")
                case "start" | "warning":
                    self.say(event.message)
                case "fatal":
                    self.fatal = "\n".join(filter(None, [self.fatal, event.message]))

    def _show_step(self, event: Event) -> None:
        self._scalars("train", event)
        self._bar.update(event.step - self._bar.n)  # goes back when a worker was lost
        terms = {name: value for name, value in event.values.items() if name.startswith("loss/")}
        largest = sorted(terms, key=lambda name: -terms[name])[:TERMS_SHOWN]
        figures = [f"{event.values['samples_per_second']:.1f} samples/s", f"loss {event.values['loss']:.3g}"]
        figures += [f"{name.removeprefix('loss/')} {terms[name]:.2g}" for name in largest]
        self._bar.set_postfix_str(" ".join(figures), refresh=False)

    def _scalars(self, group: str, event: Event) -> None:
        if time.monotonic() < self._broken_until:
            return
        try:
            for name, value in event.values.items():
                self._writer.add_scalar(f"{group}/{name}", value, event.step)
        except OSError as error:  # a full disk, say: logs are not worth a run
            self.say(f"logs not written for {LOG_PAUSE_S:g} s, training goes on: {error}")
            self._broken_until = time.monotonic() + LOG_PAUSE_S
            with contextlib.suppress(OSError):
                self._writer = SummaryWriter(self._folder)
