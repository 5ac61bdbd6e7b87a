"""Check a job, then send it to a running Ray cluster: `python -m ray_jobs.submit train -- --config FILE ...`.

What is sent is the folder that the command is called in. The job's log is shown and its exit code returned;
Ctrl-C asks the job to stop, a second one leaves it alone. The arguments are those of `dfmvr submit`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from dfmvr.cli.submit import ADDRESS, DESCRIPTION, EPILOG, add_arguments, job_arguments
from ray_jobs.submit_checks import (
    EXCLUDES,
    SubmitError,
    check_files,
    check_resources,
    check_storage,
    demand,
    parse_job,
    within,
)

NOT_SENT = 2
STOPPED = 130
CONNECT_S = 10
STORAGE_S = 30
STOP_S = 120
"""What a job that is asked to stop gets before it is killed: a step, a checkpoint, the model's export."""
RETRIES, RETRY_S = 10, 3
"""Attempts to reach a cluster that does not answer any more, and the time between them."""
INSTALL_S = 3600
"""What installing the requirements may take on a node; PyTorch alone is gigabytes."""
_EXTRAS = {"tune": "tune", "evaluate": "eval", "preprocess": "photos-dlib"}
_ENDPOINT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What the job must know of object storage; never credentials, which `ray job list` would show."""
_TOKEN = "expected RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
_TALKATIVE = (
    "ray._private.runtime_env",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Loggers of Ray that tell every ignore file, every file over 10 MiB and every connection."""
_LOST = (requests.RequestException, aiohttp.ClientError, ConnectionError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, send, follow; return the exit status."""
    options = parse(argv)
    folder = Path.cwd()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        check_here(options, folder)
        client = connect(options.address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS)
        check_resources(options.demand, cluster_resources(client.get_address()))
        job_id = send(client, options, folder)
    except AuthenticationError as error:
        print(f"submit: {error.message.splitlines()[0]}; {_TOKEN}", file=sys.stderr)
        return NOT_SENT
    except (ValueError, OSError, RuntimeError, RayStateApiException) as error:
        print(f"submit: {_one_line(error)}", file=sys.stderr)
        return NOT_SENT
    print(f"job {job_id} on {client.get_address()}", flush=True)
    if options.detach:
        print(how_to_follow(client, job_id))
        return 0
    return Follower(client, job_id).run()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; the job's own arguments are a list, without the `--` before them."""
    parser = argparse.ArgumentParser("python -m ray_jobs.submit", description=DESCRIPTION, epilog=EPILOG)
    add_arguments(parser)
    options = parser.parse_args(argv)
    options.arguments = job_arguments(options)
    return options


def check_here(options: argparse.Namespace, folder: Path) -> None:
    """Check all that can be known without the cluster; set `options.demand`.

    Raises:
        SubmitError: the job would fail.
    """
    parsed = parse_job(options.job, options.arguments)
    files = check_files(folder, parsed)

    def look() -> None:
        options.demand = demand(options.job, parsed)
        check_storage(options.demand, files)

    within(STORAGE_S, look, "object storage did not answer")


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster's Jobs API; RAY_AUTH_MODE=token and a token are used where set.

    Raises:
        SubmitError: it does not answer within CONNECT_S.
        AuthenticationError: the token is missing or wrong.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"--address: expected http://HOST:8265 (the head's dashboard), got {address!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), CONNECT_S).close()
    except OSError as error:
        raise SubmitError(
            f"{address}: expected the dashboard of a Ray head, nothing answers ({error})"
        ) from error
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the variable win over any argument
    return JobSubmissionClient(address)


def cluster_resources(address: str) -> dict[str, float]:
    """Return the sum of the resources of the nodes that are alive."""
    totals: dict[str, float] = {}
    for node in list_nodes(address, filters=[("state", "=", "ALIVE")], limit=10_000):
        for name, amount in node.resources_total.items():
            totals[name] = totals.get(name, 0.0) + amount
    return totals


def send(client: JobSubmissionClient, options: argparse.Namespace, folder: Path) -> str:
    """Upload the folder and start the job; return its id."""
    environment: dict[str, Any] = {
        "working_dir": str(folder),
        "excludes": list(EXCLUDES),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
    }
    if options.requirements:
        environment["pip"] = requirements(folder, _EXTRAS.get(options.job))
        environment["config"] = {"setup_timeout_seconds": INSTALL_S}
    return client.submit_job(
        entrypoint=entrypoint(options.job, options.arguments),
        submission_id=f"{options.job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        runtime_env=environment,
        entrypoint_num_cpus=0,  # what asks for more than is free waits for ever, without an error
    )


def entrypoint(job: str, arguments: Sequence[str]) -> str:
    """Return the shell command of a job.

    The endpoint of object storage is set here and not as the job's env_vars: the job passes it on to its
    workers, and Ray refuses a variable that is set in both ways.
    """
    endpoint = [f"{name}={os.environ[name]}" for name in _ENDPOINT if os.environ.get(name)]
    return shlex.join(
        [*(["env", *endpoint] if endpoint else []), "python", "-m", f"ray_jobs.{job}", *arguments]
    )


def requirements(folder: Path, extra: str | None) -> list[str]:
    """Return the lines of a requirements file: what pyproject.toml names, pinned by constraints.txt.

    Args:
        folder: of the project.
        extra: further optional dependencies; Ray itself must be there already.
    """
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["ray"], *(optional[extra] if extra else [])]
    packages = [line for line in wanted if not line.startswith(("ray[", "dfmvr["))]
    return ["-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt", *packages]


def how_to_follow(client: JobSubmissionClient, job_id: str) -> str:
    """Return the commands that follow and stop a job."""
    at = f"--address {client.get_address()}"
    return f"follow it: ray job logs {at} --follow {job_id}\nstop it:   ray job stop {at} {job_id}"


class Follower:
    """Shows a job's log until the job ends, and passes Ctrl-C on."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client, self._id = client, job_id
        self._shown = 0
        """Characters of the log."""

    def run(self) -> int:
        """Follow the job; return its exit code, or 130 where it was stopped or left alone."""
        asked, failures = False, 0
        while True:
            try:
                asyncio.run(self._show_log())
                details = self._client.get_job_info(self._id)
                if details.status.is_terminal():
                    return self._end(details)
                failures = 0
                time.sleep(1)
            except KeyboardInterrupt:
                if asked:
                    print(f"left alone\n{how_to_follow(self._client, self._id)}", file=sys.stderr)
                    return STOPPED
                asked = True
                self._client.stop_job(self._id)
                print("asked the job to stop; a second Ctrl-C leaves it alone", file=sys.stderr)
            except _LOST as error:
                failures += 1
                if failures > RETRIES:
                    told = f"submit: the cluster does not answer any more: {_one_line(error)}"
                    print(f"{told}\n{how_to_follow(self._client, self._id)}", file=sys.stderr)
                    return 1
                time.sleep(RETRY_S)

    async def _show_log(self) -> None:
        """Print what of the log has not been printed; a connection that was lost begins at the start."""
        position = 0
        async for text in self._client.tail_job_logs(self._id):
            print(text[max(0, self._shown - position) :], end="", flush=True)
            position += len(text)
            self._shown = max(self._shown, position)

    def _end(self, details: JobDetails) -> int:
        code = details.driver_exit_code
        if details.status == JobStatus.SUCCEEDED:
            return 0
        if details.status == JobStatus.STOPPED:
            print(f"job {self._id} was stopped", file=sys.stderr)
            return STOPPED
        message = details.message or ""
        # the rest repeats the log, unless the job has not even started
        told = message if code is None else message.partition(", last available logs")[0]
        print(f"job {self._id} failed: {told}", file=sys.stderr)
        return 1 if code is None else code if code > 0 else 128 - code


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that still waits for object storage would hold the exit
