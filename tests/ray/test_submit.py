"""Jobs that are sent: what is refused before, and a real head with a token that runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from dfmvr.cli import UserError, build_parser
from dfmvr.cli.submit import job_arguments
from dfmvr.config import Settings, dump_settings, with_changes
from dfmvr.training.checkpoint import FORMAT, MANIFEST_FILE, STATE_FILE, TrainingState
from ray_jobs import submit
from ray_jobs.scaling import PreflightError
from ray_jobs.submit import Follower, connect, entrypoint, main, requirements
from ray_jobs.submit_checks import (
    EXCLUDES,
    SubmitError,
    check_files,
    check_resources,
    demand,
    files_to_send,
    parse_job,
    within,
)

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
Refused = Callable[..., str]
NOWHERE = "http://127.0.0.1:1"
QUICKSTART = ["--config", "configs/quickstart.yaml"]
PLACES = ["data.uri=/shared/faces", "training.runs=/shared/runs"]
TINY = ["synthetic.n_subjects=10", "synthetic.image_size=48", "synthetic.expressions_per_subject=1"]
MIB = 2**20


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that submits to nobody, and gives the one line that is told."""

    def submit_to_nobody(job: str, *arguments: str) -> str:
        assert main(["--address", NOWHERE, job, "--", *arguments]) == 2
        printed = capsys.readouterr()
        assert not printed.out
        (line,) = printed.err.splitlines()
        return line

    return submit_to_nobody


def test_what_is_right_comes_as_far_as_the_cluster(refused: Refused):
    message = refused("train", *QUICKSTART, *PLACES)
    assert f"{NOWHERE}: expected the dashboard of a Ray head, nothing answers" in message


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("train", [*QUICKSTART, *PLACES, "training.epoch=3"], "did you mean 'training.epochs'?"),
        ("tune", ["--config", "configs/tune/smoke.yaml", "trails=3"], "did you mean 'trials'?"),
        (
            "train",
            QUICKSTART,
            "got training.runs=runs, data.uri=data/quickstart: that lies in the job",
        ),
        (
            "make_dataset",
            ["--out", "data/x"],
            "s3://... or an absolute path that every node has, got --out=data/x",
        ),
        ("preprocess", ["--dataset", "folder", "--root", "photos", "--out", "/x"], "got --root=photos"),
        ("evaluate", ["--run", "quickstart"], "got --run=quickstart"),
        ("train", ["--resume", "quickstart"], "got --resume=quickstart"),
        ("train", ["--config", "runs/best.yaml"], "--config: expected what is sent along with this folder"),
        ("train", ["--config", str(ROOT / "configs/small.yaml")], "--config: expected what is sent along"),
        (
            "train",
            [*QUICKSTART, *PLACES, "face_model.path=data/bfm.npz"],
            "face_model.path: expected what is sent along",
        ),
        ("train", [*QUICKSTART, "--address", "auto"], "--address auto: expected before train"),
        ("train", [*QUICKSTART, "--dry-run"], "--dry-run needs no cluster"),
    ],
)
def test_what_would_fail_later_is_told_now(job: str, arguments: list[str], message: str, refused: Refused):
    assert message in refused(job, *arguments)


def test_a_wrong_option_of_the_job_is_told_as_the_job_tells_it(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--", *QUICKSTART, "--epochs", "3"])
    assert "ray_jobs.train: error: unrecognized arguments: --epochs" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["ray://head:10001", "head:6379", "http://"])
def test_an_address_of_another_kind_is_refused(address: str):
    with pytest.raises(SubmitError, match="expected http://HOST:8265"):
        connect(address)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with all that must not be sent."""
    sent = ["ray_jobs/train.py", "dfmvr/data/storage.py", "configs/a.yaml"]
    kept = [
        ".env",
        ".env.local",
        "data/x",
        "runs/x",
        ".venv/x",
        "sub/.env",
        "server.key",
        "sub/a.pem",
        "by_git",
        "by_ray",
    ]
    for name in [*sent, *kept]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / ".gitignore").write_text("/by_git\n")
    (tmp_path / ".rayignore").write_text("/by_ray\n")
    return tmp_path


def test_secrets_data_and_ignored_files_stay_here(project: Path):
    expected = {"ray_jobs/train.py", "dfmvr/data/storage.py", "configs/a.yaml", ".gitignore", ".rayignore"}
    assert set(files_to_send(project)) == expected


def test_the_files_counted_are_those_that_ray_packs(project: Path):
    package = project.parent / "package.zip"
    excludes = [".git", ".venv", "venv", "__pycache__", *EXCLUDES]
    create_package(str(project), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as file:
        packed = {item.filename: item.file_size for item in file.infolist() if not item.is_dir()}
    assert files_to_send(project) == packed


def test_this_project_is_small_and_sends_no_secrets():
    files = files_to_send(ROOT)
    assert sum(files.values()) < 40 * MIB
    assert {"ray_jobs/train.py", "dfmvr/data/manifest.py", "configs/paper.yaml", "constraints.txt"} <= set(
        files
    )
    assert not any(name.startswith(("data/", "runs/", ".venv/", ".git/", "tests/")) for name in files)


def test_too_large_a_folder_is_refused_with_its_largest_files(project: Path):
    for name, size in (("configs/a.bin", 70), ("dfmvr/b.bin", 40), ("data/c.bin", 500), ("by_git", 500)):
        with (project / name).open("wb") as file:
            file.truncate(size * MIB)
    with pytest.raises(
        SubmitError, match=r"at most 100 MiB .* got 110 MiB; .*configs/a\.bin \(70\.0 MiB\)"
    ) as told:
        check_files(project, parse_job("make_dataset", []))
    assert "dfmvr/b.bin (40.0 MiB)" in str(told.value)
    assert "c.bin" not in str(told.value)
    (project / "dfmvr/b.bin").unlink()
    check_files(project, parse_job("make_dataset", []))


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(SubmitError, match="expected the project's folder"):
        check_files(tmp_path, parse_job("make_dataset", []))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.runs=s3://no-such-bucket/runs"], "cannot write s3://no-such-bucket/runs/.writable"),
        (["training.runs={bucket}/runs"], "no complete data set at {bucket}/no-set"),
    ],
)
def test_storage_that_is_not_there_is_told(
    arguments: list[str], message: str, s3_server: str, refused: Refused
):
    arguments = [argument.format(bucket=s3_server) for argument in arguments]
    told = refused("train", *QUICKSTART, f"data.uri={s3_server}/no-set", *arguments)
    assert message.format(bucket=s3_server) in told


def test_storage_that_is_there_passes(s3_server: str, refused: Refused):
    assert "nothing answers" in refused("make_dataset", "--out", f"{s3_server}/submit/set")


def test_storage_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, refused: Refused):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setattr(submit, "STORAGE_S", 0.5)
        started = time.monotonic()
        assert "object storage did not answer within 0.5 s" in refused("make_dataset", "--out", "s3://b/set")
        assert time.monotonic() - started < 20


def test_a_task_within_its_time_raises_its_own_error():
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0, "")


def test_a_run_of_another_face_model_is_refused(tmp_path: Path, refused: Refused):
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "epoch-00001-sample-000000000"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_settings(with_changes(Settings(), {"data.uri": "/shared/faces"})))
    state = TrainingState("run", epoch=1, face_model_hash="f" * 64)
    (checkpoint / STATE_FILE).write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(state)}))
    (checkpoint / MANIFEST_FILE).write_text("{}")
    told = refused("train", "--resume", str(run))
    assert f"face_model.path (shipped): expected face model {'f' * 64}, which the network was trained" in told


def test_a_model_of_another_face_model_is_refused(tmp_path: Path, refused: Refused):
    (tmp_path / "model.json").write_text(json.dumps({"face_model_hash": "0" * 64}))
    arguments = ["--model", str(tmp_path), "--out", "/shared/out", "data.uri=/shared/faces"]
    assert f"expected face model {'0' * 64}" in refused("evaluate", *arguments)
    arguments[1] = "shipped"
    assert "nothing answers" in refused("evaluate", *arguments)


@pytest.mark.parametrize(
    ("job", "arguments", "resources", "message"),
    [
        (
            "train",
            [*QUICKSTART, *PLACES, "training.cpus_per_worker=4"],
            {"CPU": 8.0},
            "at least 9 CPUs, got 8",
        ),
        (
            "train",
            [*QUICKSTART, *PLACES, "training.use_gpu=true"],
            {"CPU": 8.0, "GPU": 1.0},
            "expected 2 GPUs",
        ),
        (
            "pretrain_parser",
            ["--config", "configs/parser.yaml", *PLACES, "training.use_gpu=true"],
            {"CPU": 8.0},
            "GPUs",
        ),
        (
            "tune",
            ["--config", "configs/tune/smoke.yaml", "concurrent=400"],
            {"CPU": 3.0},
            "400 trials at a time",
        ),
        ("make_dataset", ["--out", "/shared/faces"], {"GPU": 8.0}, "at least 1 CPU, got 0"),
    ],
)
def test_what_the_cluster_can_never_give_is_told(
    job: str, arguments: list[str], resources: dict[str, float], message: str
):
    wanted = demand(job, parse_job(job, arguments))
    with pytest.raises((SubmitError, PreflightError), match=message):
        check_resources(wanted, resources)
    check_resources(wanted, {"CPU": 1000.0, "GPU": 1000.0})


def test_the_job_knows_the_endpoint_but_no_credentials(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    command = entrypoint("train", ["--config", "a b.yaml"])
    assert command == "env AWS_ENDPOINT_URL=http://store:9000 python -m ray_jobs.train --config 'a b.yaml'"


def test_requirements_are_the_projects_pinned_ones_without_ray():
    lines = requirements(ROOT, "tune")
    assert lines[0] == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    assert "optuna>=4" in lines
    assert any(line.startswith("kornia>=") for line in lines)
    assert not any(line.startswith(("ray", "dfmvr")) for line in lines)


def test_the_command_says_so_where_ray_is_missing(monkeypatch: pytest.MonkeyPatch):
    options = build_parser().parse_args(["submit", "--detach", "train", "--", *QUICKSTART])
    assert (options.detach, options.job, job_arguments(options)) == (True, "train", QUICKSTART)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'dfmvr\[ray\]'"):
        options.run(options)


class FlakyClient:
    """The part of a client that a Follower uses, over a connection that breaks."""

    def __init__(self, logs: Sequence[str | Exception], code: int | None, status: JobStatus) -> None:
        self.logs, self.code, self.status, self.message = (
            list(logs),
            code,
            status,
            "first, last available logs x",
        )
        self.driver_exit_code = code

    def get_address(self) -> str:
        return NOWHERE

    def get_job_info(self, _: str) -> FlakyClient:
        if not self.logs:
            return self
        raise RuntimeError("gone")

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        while self.logs:
            item = self.logs.pop(0)
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (0, JobStatus.SUCCEEDED, 0),
        (3, JobStatus.FAILED, 3),
        (-9, JobStatus.FAILED, 137),
        (None, JobStatus.FAILED, 1),
        (None, JobStatus.STOPPED, 130),
    ],
)
def test_a_broken_connection_shows_nothing_twice_and_the_code_is_the_jobs(
    code: int | None,
    status: JobStatus,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(submit, "RETRY_S", 0)
    client = FlakyClient(["one\n", "tw", RuntimeError("broken"), "one\ntwo\n", "three\n"], code, status)
    assert Follower(client, "job").run() == expected  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_cluster_that_is_gone_for_good_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(submit, "RETRY_S", 0)
    client = FlakyClient([RuntimeError("gone")] * 100, None, JobStatus.RUNNING)
    assert Follower(client, "job").run() == 1  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert "does not answer any more" in told
    assert f"ray job logs --address {NOWHERE} --follow job" in told


@dataclasses.dataclass
class Head:
    """A Ray head of our own, with a token."""

    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        program = "import sys; from dfmvr.cli import main; sys.exit(main())"
        return [sys.executable, "-c", program, "submit", "--address", self.address, *arguments]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="dfmvr-", dir="/tmp")  # sockets within need a short path
    gcs, dashboard, client, agent = free_ports(4)
    programs = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(programs / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
        *(f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=100000000"),
        *(
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--temp-dir={folder}",
            "--node-ip-address=127.0.0.1",
        ),
    ]
    address = f"http://127.0.0.1:{dashboard}"
    with (Path(folder) / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not _has_cpus(address, environment["RAY_AUTH_TOKEN"]):
            assert process.poll() is None, (Path(folder) / "head.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield Head(address, environment)
    finally:
        parent = psutil.Process(process.pid)
        for item in [*parent.children(recursive=True), parent]:  # and nobody else's Ray
            with contextlib.suppress(psutil.NoSuchProcess):
                item.kill()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _has_cpus(address: str, token: str) -> bool:
    """Say whether the head's own node has joined, which is a while after the head is healthy."""
    try:
        nodes = httpx.get(f"{address}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
        return nodes.status_code == 200 and '"CPU"' in nodes.text
    except httpx.HTTPError:
        return False


def test_a_job_that_succeeds_shows_its_log_and_returns_0(head: Head, tmp_path: Path):
    done = head.submit("make_dataset", "--", "--out", str(tmp_path / "set"), *TINY)
    assert done.returncode == 0, done.stderr
    assert "8 train, 1 validation, 1 test samples of 10 subjects" in done.stdout
    assert (tmp_path / "set" / "dataset.json").is_file()


def test_a_job_that_fails_returns_its_exit_code(head: Head, tmp_path: Path):
    failed = head.submit("make_dataset", "--", "--out", str(tmp_path), "synthetic.n_subjects=3")
    assert failed.returncode == 1
    assert "make_dataset: synthetic.n_subjects: expected enough" in failed.stdout
    assert "failed: Job entrypoint command failed with exit code 1" in failed.stderr


def test_another_token_is_refused(head: Head, tmp_path: Path):
    refused = head.submit("make_dataset", "--", "--out", str(tmp_path), RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "Invalid authentication token; expected RAY_AUTH_MODE=token" in line


def test_a_cluster_that_is_too_small_is_told(head: Head):
    refused = head.submit("train", "--", *QUICKSTART, *PLACES, "training.cpus_per_worker=1")
    assert refused.returncode == 2
    assert "expected a cluster of at least 3 CPUs, got 2" in refused.stderr


@pytest.mark.slow
def test_detached_jobs_say_how_to_follow_them(head: Head, tmp_path: Path):
    sent = head.submit("--detach", "make_dataset", "--", "--out", str(tmp_path), "synthetic.n_subjects=3")
    assert sent.returncode == 0
    follow = sent.stdout.partition("follow it: ")[2].splitlines()[0]
    followed = subprocess.run(
        follow.split(), env=head.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert "make_dataset: synthetic.n_subjects: expected enough" in followed.stdout


@pytest.mark.slow
def test_ctrl_c_stops_the_job(head: Head, tmp_path: Path):
    many = ["synthetic.n_subjects=5000", "synthetic.image_size=224"]
    with subprocess.Popen(
        head.command("make_dataset", "--", "--out", str(tmp_path), *many),
        cwd=ROOT,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Running entrypoint" in line:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130
    text = "".join(lines)
    assert "asked the job to stop" in text
    assert "was stopped" in text
