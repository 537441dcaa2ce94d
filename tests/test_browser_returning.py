from node_js import run_module


def test_it_returns_when_it_should_and_only_then() -> None:
    run_module("returning.mjs")
