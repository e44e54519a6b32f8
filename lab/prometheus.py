"""A Prometheus server of this machine, started over targets of our own and asked over HTTP."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.server import die_with_parent, free_port

START_SECONDS = 60.0
STOP_SECONDS = 20.0
ASK_SECONDS = 30.0


class PrometheusError(Exception):
    """There is no Prometheus, it did not start, or it did not answer a query."""


class Prometheus:
    """One that runs; see `prometheus`.

    Args:
        url: of its API, without a path.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with _open(f"{self.url}/-/ready"):
                return True
        except OSError:
            return False

    def series(self, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Answer to a range query: `metric` (labels) and `values` ([seconds, text] each) of every series.

        Raises:
            PrometheusError: it refused the query, or did not answer.
        """
        asked = {"query": query, "start": start, "end": end, "step": step}
        found: list[dict[str, Any]] = self._ask("query_range", asked)["result"]
        return found

    def now(self, query: str, at: float) -> list[dict[str, Any]]:
        """Answer to a query at one time: `metric` and `value` of every series.

        Raises:
            PrometheusError: as for `series`.
        """
        found: list[dict[str, Any]] = self._ask("query", {"query": query, "time": at})["result"]
        return found

    def _ask(self, what: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with _open(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(asked)}") as answer:
                found: dict[str, Any] = json.load(answer)["data"]
                return found
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{asked['query']}: {error.read().decode()}") from None
        except (OSError, ValueError, LookupError) as error:
            raise PrometheusError(f"{asked['query']}: {error!r}") from None


@contextmanager
def prometheus(
    directory: Path, jobs: Mapping[str, Sequence[str]], rules: Path | None = None, every: float = 2
) -> Iterator[Prometheus]:
    """A server that keeps what it collects in `directory`, stopped at the end.

    Args:
        directory: for its data, its configuration and its log; one that was used before is gone on with.
        jobs: addresses (host:port) to collect from, by the name of the job.
        rules: file of alert rules.
        every: seconds between two collections.

    Raises:
        PrometheusError: there is none on this machine, or it did not start.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise PrometheusError("no Prometheus here; on Debian: apt-get install prometheus")
    directory.mkdir(parents=True, exist_ok=True)
    configuration = {
        "global": {"scrape_interval": f"{every}s", "evaluation_interval": f"{every}s"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(targets)}]}
            for job, targets in jobs.items()
        ],
    }
    written = directory / "prometheus.yml"
    written.write_text(json.dumps(configuration))  # JSON is YAML
    port = free_port()
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={written}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
            preexec_fn=die_with_parent,
        )
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _await(server, process, directory / "log")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(server: Prometheus, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PrometheusError(f"Prometheus did not start\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _open(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(url, timeout=ASK_SECONDS)
