"""One Redis for all tests that do not break theirs; each bus there has a prefix of its own."""

import itertools
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from time import monotonic, sleep

import certificates
import pytest
import redis
from hypothesis import HealthCheck, settings
from process import PATIENCE, environment
from redis_server import REDIS, free_port, server_options

settings.register_profile(
    "busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")  # how quick a machine is says nothing of what is tested

_numbers = itertools.count()


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that answers, and is stopped behind the last test."""
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [REDIS, *server_options(port, {})],
        cwd=directory,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(process, port, directory / "log")
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = monotonic() + PATIENCE
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:
                assert process.poll() is None, log.read_text("utf-8")
                assert monotonic() < until
                sleep(0.01)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> certificates.Files:
    """Not to be changed."""
    return certificates.make(tmp_path_factory.mktemp("tls"), "first")


@pytest.fixture
def new_prefix() -> str:
    """What no other key of the server begins with."""
    return f"t{next(_numbers)}:"


@pytest.fixture
def client(redis_port: int) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_port) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has said goes to another process as UTF-8, also where it said a lone surrogate:
    pytest-xdist would end there.
    """
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
