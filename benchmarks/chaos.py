"""Training under attack: what each kind of loss costs, against the same run left in peace.

    python -m benchmarks.chaos [--only worker,driver] [--kills 20] [--markdown docs/results/reliability.md]

Every scenario trains the same small run on a Ray of its own, in processes of its own and
is let to finish: with `--resume` where the driver or the controller is gone. `steps_repeated` counts steps
that were done more than once, in all; `loss_difference` is the largest relative difference of a step's
training loss from the undisturbed run's. Linux only: processes are found by their environment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from benchmarks.common import machine, report

SEED = 7
EVERY = 10
"""Steps between checkpoints."""
EPOCHS = 8
SUBJECTS = 100
MARK = "DFMVR_CHAOS"
NODE_MARK = "DFMVR_CHAOS_NODE"
PORT = 6479
GIVE_UP_S = 900.0
DATA = ("data.image_size=32", "synthetic.image_size=32")
OVERRIDES = (
    *DATA,
    *("data.batch_size=4", "data.shuffle_rows=32", "network.width=0.0625"),
    *("network.regressor_width=0.0625", f"training.epochs={EPOCHS}", "training.workers=2"),
    *(f"training.checkpoint_every_steps={EVERY}", "training.cpus_per_worker=0.5", "training.max_failures=-1"),
    *("optimiser.warmup_steps=5", "training.render_from=0.9", "training.hang_timeout_s=60"),
)


@dataclass
class Attack:
    """A scenario: one run, and what is done to it."""

    folder: Path
    name: str
    environment: dict[str, str]
    overrides: tuple[str, ...] = ()
    address: str = ""
    driver: subprocess.Popen[bytes] | None = None
    starts: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / self.name

    @property
    def log(self) -> str:
        """What the drivers have printed."""
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def launch(self) -> None:
        """Start training, or go on with it."""
        self.starts += 1
        new = ["--config", "configs/quickstart.yaml", "--run-id", self.name]
        which = ["--resume", self.name] if (self.run / "config.yaml").exists() else new
        where = ["--address", self.address] if self.address else []
        arguments = [*which, *where, f"data.uri={self.folder}/data", f"training.runs={self.folder}/runs"]
        command = [sys.executable, "-m", "ray_jobs.train", *arguments, *OVERRIDES, *self.overrides]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.driver = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def finish(self) -> None:
        """Wait for the end; start again what ended before it."""
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            assert self.driver is not None
            self.driver.wait(max(1.0, deadline - time.monotonic()))
            if self.driver.returncode == 0:
                return
            if self.starts > 60:
                raise RuntimeError(f"{self.name}: did not finish\n{self.log[-2000:]}")
            self.launch()

    @property
    def metrics(self) -> dict[str, Any]:
        """What training says of itself."""
        content: dict[str, Any] = json.loads((self.run / "metrics.json").read_text())["training"]
        return content

    def losses(self) -> list[tuple[int, float]]:
        """Return (step, training loss) in the order in which they were written."""
        found = []
        for file in sorted((self.run / "logs").glob("events*"), key=lambda path: path.name.split(".")[3]):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag == "train/loss":
                        found.append((event.step, float(value.tensor.float_val[0])))
        return found

    def wait_for_step(self, step: int) -> None:
        """Wait until a checkpoint of a step is stored."""
        deadline = time.monotonic() + 300
        while self.step() < step:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: step {step} does not come\n{self.log[-2000:]}")
            time.sleep(0.2)
        time.sleep(1.0)  # some steps further, which are lost then

    def step(self) -> int:
        """Return the newest step of a stored checkpoint."""
        states = [*(self.run / "checkpoints").glob("*/manifest.json")]
        steps = []
        for manifest in states:
            with suppress(OSError, ValueError, KeyError):
                steps.append(int(json.loads((manifest.parent / "state.json").read_text())["step"]))
        return max(steps, default=0)

    def pids(self, title: str, mark: str | None = None) -> list[int]:
        """Return this scenario's processes whose title begins so."""
        wanted = (mark or f"{MARK}={self.environment[MARK]}").encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (path / "cmdline").read_bytes().startswith(title.encode()) and wanted in (
                    path / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return sorted(found)

    def kill(self, title: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal to a process of this scenario; return whether there was one."""
        pids = self.pids(title)
        for pid in pids[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(pids)


WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def undisturbed(attack: Attack) -> None:
    """Nothing happens."""
    del attack


def worker(attack: Attack) -> None:
    """kill -9 of a worker: what the kernel does when memory runs out."""
    attack.wait_for_step(3 * EVERY)
    attack.kill(WORKER)


def controller(attack: Attack) -> None:
    """kill -9 of Ray Train's controller; then `--resume`."""
    attack.wait_for_step(3 * EVERY)
    attack.kill(CONTROLLER)


def driver(attack: Attack) -> None:
    """kill -9 of the driver; then `--resume`."""
    attack.wait_for_step(3 * EVERY)
    assert attack.driver is not None
    attack.driver.kill()


def evicted(attack: Attack) -> None:
    """SIGTERM to the driver, as Kubernetes evicts; then `--resume`."""
    attack.wait_for_step(3 * EVERY)
    assert attack.driver is not None
    attack.driver.terminate()


def hung(attack: Attack) -> None:
    """A worker stops and never comes back (SIGSTOP)."""
    attack.wait_for_step(3 * EVERY)
    attack.kill(WORKER, signal.SIGSTOP)


def corrupt(attack: Attack) -> None:
    """kill -9 of the driver, and a flipped bit in the newest checkpoint; then `--resume`."""
    driver(attack)
    assert attack.driver is not None
    attack.driver.wait()
    newest = sorted((attack.run / "checkpoints").glob("*/manifest.json"))[-1].parent / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))


def full_disk(attack: Attack) -> None:
    """The disk of the runs is full for a while (a small tmpfs; needs the right to mount one)."""
    attack.wait_for_step(3 * EVERY)
    filler = attack.run / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    time.sleep(8)
    filler.unlink()


def chaos(kills: int) -> Callable[[Attack], None]:
    """Return a scenario of random kills: workers, controller and driver."""

    def attack_many(attack: Attack) -> None:
        """Random kills of workers, controller and driver."""
        chance, done, floor = random.Random(SEED), 0, 0
        counts: dict[str, int] = {"worker": 0, "controller": 0, "driver": 0}
        while done < kills:
            assert attack.driver is not None
            if attack.driver.poll() is not None:
                if attack.driver.returncode == 0:
                    break
                attack.launch()
            # At least one more checkpoint between two kills: else nothing could ever finish.
            if attack.step() <= floor:
                time.sleep(0.2)
                continue
            time.sleep(chance.uniform(0, 2.0))
            victim = chance.choices(["worker", "controller", "driver"], [6, 1, 1])[0]
            floor = attack.step()
            if victim == "driver":
                attack.driver.kill()
                attack.driver.wait()
            elif not attack.kill(WORKER if victim == "worker" else CONTROLLER):
                continue
            counts[victim] += 1
            done += 1
        attack.notes["kills"] = counts

    return attack_many


def node_lost(attack: Attack) -> None:
    """kill -9 of a node; another one comes later: 2 -> 1 -> 2 workers."""
    attack.wait_for_step(3 * EVERY)
    kill_node(attack, "two")
    attack.wait_for_step(attack.step() + 3 * EVERY)
    start_node(attack, "three")


def node_drained(attack: Attack) -> None:
    """A node is told that it will be taken away (a spot instance's notice), and goes; another one comes."""
    attack.wait_for_step(3 * EVERY)
    arguments = Path(f"/proc/{raylet(attack, 'two')}/cmdline").read_text().split("\0")
    node = next(text.partition("=")[2] for text in arguments if text.startswith("--node_id="))
    ray_command(
        attack,
        *("drain-node", f"--address={attack.address}", f"--node-id={node}"),
        *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"),
        "--deadline-remaining-seconds=20",
    )
    time.sleep(20)
    kill_node(attack, "two")
    attack.notes["checkpoint_on_notice"] = "a checkpoint is written now" in attack.log
    start_node(attack, "three")


@contextmanager
def cluster(attack: Attack) -> Iterator[None]:
    """A head that only reads data, and two nodes with room for one worker each."""
    attack.address = f"127.0.0.1:{PORT}"
    attack.overrides = ("training.min_workers=1", "training.cpus_per_worker=2")
    try:
        for name in ("head", "one", "two"):
            start_node(attack, name)
        yield
    finally:
        for pid in attack.pids(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(5)


def start_node(attack: Attack, name: str) -> None:
    """Start a node, whose processes bear its name in their environment."""
    head = ("--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=1")
    where = head if name == "head" else (f"--address={attack.address}", "--num-cpus=2")
    attack.environment[NODE_MARK] = name
    ray_command(attack, "start", *where, "--object-store-memory=150000000", "--disable-usage-stats")
    del attack.environment[NODE_MARK]


def ray_command(attack: Attack, *arguments: str) -> None:
    """Run Ray's command line."""
    command = [str(Path(sys.executable).with_name("ray")), *arguments]
    subprocess.run(command, env=attack.environment, check=True, capture_output=True)


def raylet(attack: Attack, node: str) -> int:
    """Return the process that is a node."""
    return attack.pids(title_of("raylet"), f"{NODE_MARK}={node}")[0]


def kill_node(attack: Attack, node: str) -> None:
    """Kill -9 a node."""
    with suppress(ProcessLookupError, IndexError):
        os.kill(raylet(attack, node), signal.SIGKILL)


def title_of(binary: str) -> str:
    """Return how the command line of one of Ray's binaries begins."""
    import ray

    return str(Path(ray.__file__).parent / "core" / "src" / "ray" / binary / binary)


PEACE = "undisturbed"
ON_ONE_NODE = (worker, controller, driver, evicted, hung, corrupt, full_disk)
ON_A_CLUSTER = (node_lost, node_drained)


def main() -> None:
    """Attack and report."""
    scenarios = {scenario.__name__: scenario for scenario in (*ON_ONE_NODE, *ON_A_CLUSTER)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"some of {', '.join(scenarios)}, chaos (default: all)")
    parser.add_argument("--kills", type=int, default=20, help="of the scenario chaos (%(default)d)")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    parser.add_argument("--keep", type=Path, help="work in this folder, leave it, and go on with what it has")
    options = parser.parse_args()
    scenarios["chaos"] = chaos(options.kills)
    wanted = [name for name in options.only.split(",") if name] or list(scenarios)
    if unknown := set(wanted) - set(scenarios):
        parser.error(f"--only: expected some of {', '.join(scenarios)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.keep or Path(temporary)
        make_data(folder)
        kept = folder / "results.json"
        results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
        peace = Peace({}, 0.0)
        for name in (PEACE, *wanted):
            attack = Attack(folder, name, environment())
            if name not in results:
                shutil.rmtree(attack.run, ignore_errors=True)
                try:
                    results[name] = carry_out(attack, scenarios.get(name, undisturbed), peace)
                except NotPossible as error:
                    results[name] = {"skipped": str(error)}
                kept.write_text(json.dumps(results))
                print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
            if name == PEACE:
                last = attack.metrics["history"][-1]["val_loss"]
                peace = Peace(dict(attack.losses()), last)
    if options.markdown:
        options.markdown.write_text(table(results, scenarios))
    metrics = {
        f"{name}_{key}": value
        for name, result in results.items()
        for key, value in result.items()
        if isinstance(value, int | float | str)
    }
    report("chaos", metrics, epochs=EPOCHS, checkpoint_every_steps=EVERY, workers=2, seed=SEED)


@dataclass(frozen=True)
class Peace:
    """The undisturbed run."""

    losses: dict[int, float]
    """By step."""
    val_loss: float


class NotPossible(RuntimeError):
    """This machine does not allow the scenario."""


def carry_out(attack: Attack, scenario: Callable[[Attack], None], peace: Peace) -> dict[str, Any]:
    """Carry out a scenario to the run's end; return what it cost."""
    room = cluster(attack) if scenario in ON_A_CLUSTER else nullcontext()
    if scenario is full_disk:
        room = small_disk(attack)
    with room:
        start = time.monotonic()
        attack.launch()
        scenario(attack)
        attack.finish()
        seconds = time.monotonic() - start
        losses, metrics = attack.losses(), attack.metrics
    differences = [abs(loss / peace.losses[step] - 1) for step, loss in losses if step in peace.losses]
    last = metrics["history"][-1]["val_loss"]
    return {
        "finished": metrics["epochs"] == EPOCHS,
        "steps": metrics["step"],
        "steps_repeated": len(losses) - len({step for step, _ in losses}),
        "starts": attack.starts,
        "loss_difference": max(differences, default=0.0),
        "val_loss_ratio": last / peace.val_loss if peace.losses else 1.0,
        "failed_checkpoints": metrics["failed_checkpoints"],
        "seconds": round(seconds, 1),
        **attack.notes,
    }


@contextmanager
def small_disk(attack: Attack) -> Iterator[None]:
    """Put the run on a disk of its own."""
    attack.run.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(attack.run)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        raise NotPossible("a tmpfs cannot be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(attack.run)], check=True)


def make_data(folder: Path) -> None:
    """Make the data set."""
    settings = [f"synthetic.n_subjects={SUBJECTS}", "synthetic.supersample=1", f"data.uri={folder}/data"]
    command = [sys.executable, "-m", "ray_jobs.make_dataset", "--config", "configs/quickstart.yaml"]
    log = folder / "data.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        subprocess.run([*command, *settings, *DATA], env=environment(), check=True, stdout=file, stderr=file)


def environment() -> dict[str, str]:
    """Return the environment of a scenario's processes, marked as its own."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"}
    return {**os.environ, **quiet, **quick, MARK: uuid.uuid4().hex}


def table(results: dict[str, dict[str, Any]], scenarios: dict[str, Callable[[Attack], None]]) -> str:
    """Return the results as a Markdown table."""
    run = f"{EPOCHS} epochs, two workers on {machine()['cores']} cores, a checkpoint every {EVERY} steps"
    lines = [f"{HEAD.format(run=run)}|---|---|---|---|---|---|---|"]
    for name, result in results.items():
        what = (scenarios.get(name, undisturbed).__doc__ or "").strip()
        if "skipped" in result:
            lines.append(f"| {what} | not run: {result['skipped']} | | | | | |")
            continue
        extra = "".join(
            f"; {key.replace('_', ' ')}: {value}" for key, value in result.items() if key in NOTES
        )
        lines.append(
            f"| {what}{extra} | {'yes' if result['finished'] else 'NO'} | {result['starts']} | "
            f"{result['steps_repeated']} of {result['steps']} | {result['loss_difference']:.1e} | "
            f"x {result['val_loss_ratio']:.4f} | {result['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """# What survives, and what it costs

Written by `python -m benchmarks.chaos --markdown FILE`: the same small run ({run})
under each attack, against the run that nothing disturbs. *Repeated* steps were done again, after going back
to a checkpoint; *difference*: the largest relative one of a step's training loss. Seconds hold Ray's starts.
Where the number of workers changes, a step's batches hold other samples: its loss, and the end, differ. (The
validation split of this run has 4 rows.)

| what happens | finished | starts | repeated | difference | last validation loss | seconds |
"""
NOTES = ("kills", "checkpoint_on_notice")


if __name__ == "__main__":
    main()
