"""The client for browsers against an injected fetch, with time that passes when a test says so: the
sentences stand in the modules of JavaScript, and real links in tests/test_browser_client.py."""

from node_js import run_module


def test_it_returns_when_it_should_and_only_then() -> None:
    run_module("returning.mjs")


def test_it_changes_open_streams_and_falls_back_to_polls() -> None:
    run_module("changing.mjs")
