"""How many workers: what may be written, and that several are refused without Redis."""

import os
from pathlib import Path

import pytest

from gateway.config import MAX_WORKERS, Config
from gateway.errors import ConfigError
from gateway.settings import load

REDIS = {"redis": "redis://127.0.0.1:6379/0"}


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(count)))


def refusal(**flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, {}, None)
    return str(caught.value)


def test_one_worker_is_the_default() -> None:
    assert Config().worker_count == 1


@pytest.mark.parametrize("count", [1, 2, MAX_WORKERS])
def test_with_redis_any_number_up_to_the_bound_is_taken(count: int) -> None:
    assert load({"workers": str(count), **REDIS}, {}, None).config.worker_count == count


def test_a_file_may_say_a_number_as_well_as_text(tmp_path: Path) -> None:
    for text in ("3", '"3"'):
        file = tmp_path / "gateway.toml"
        file.write_text(f'workers = {text}\nredis = "redis://r"\n', "utf-8")
        assert load({}, {}, file).config.worker_count == 3


@pytest.mark.parametrize(
    "text", ["", "0", "257", "-1", "+2", "2.0", " 2", "two", "Auto", "٣", "2\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    expected = "but must be a whole number from 1 to 256, or auto."
    assert refusal(workers=text, **REDIS) == f"workers is {text!r} (flag --workers), {expected}"


@pytest.mark.parametrize("literal", ["true", "2.0", "[2]", "0"])
def test_anything_else_in_a_file_is_refused(literal: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'workers = {literal}\nredis = "redis://r"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"^workers is .* but must be "):
        load({}, {}, file)


def test_auto_is_one_worker_for_each_core_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, taken in ((1, 1), (6, 6), (1000, MAX_WORKERS)):
        cores(monkeypatch, found)
        assert load({"workers": "auto", **REDIS}, {}, None).config.worker_count == taken


def test_several_workers_without_redis_are_refused_with_the_reason_and_the_way_out() -> None:
    sentence = refusal(workers="4")
    assert sentence.startswith("workers is 4 (flag --workers), but without Redis each process")
    assert "a client would miss what is published at another one" in sentence
    assert sentence.endswith("link them with --redis redis://..., or take --workers 1.")
    assert "\n" not in sentence


def test_auto_without_redis_is_refused_where_it_would_be_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores(monkeypatch, 8)
    assert refusal(workers="auto").startswith("workers is auto (flag --workers, 8 here), but ")
    cores(monkeypatch, 1)
    assert load({"workers": "auto"}, {}, None).config.worker_count == 1
