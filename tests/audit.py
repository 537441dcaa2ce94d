"""Known vulnerabilities in what the image installs: python tests/audit.py LOCK.

Ends with 1 where one is known. Where the service that knows them cannot be asked, or does not know
the packages, that is said in one line and is no failure: the checks also run without a network.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

SECONDS = 90
"""For all of it, whatever the network does."""

PIP_AUDIT = str(Path(sys.executable).with_name("pip-audit"))


def main(lock: str, program: str = PIP_AUDIT, seconds: float = SECONDS) -> int:
    flags = ("--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json")
    with TemporaryDirectory() as directory:
        report = Path(directory, "report")
        command = (program, "--requirement", lock, *flags, "--output", str(report))
        try:
            subprocess.run(command, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            click.echo(f"audit: no answer in {seconds:g} s; nothing was audited")
            return 0
        if not report.exists():
            click.echo("audit: the vulnerability service cannot be reached; nothing was audited")
            return 0
        found = json.loads(report.read_text("utf-8"))["dependencies"]
    return tell(found)


def tell(found: list[dict[str, Any]]) -> int:
    known = [package for package in found if "skip_reason" not in package]
    vulnerable = [(package, each) for package in known for each in package["vulns"]]
    for package, each in vulnerable:
        mended = ", ".join(each["fix_versions"]) or "none yet"
        click.echo(
            f"audit: {package['name']} {package['version']}: {each['id']}, mended in: {mended}"
        )
    if not known:
        click.echo(f"audit: the service knows none of {len(found)} packages; nothing was audited")
    elif not vulnerable:
        click.echo(f"audit: {len(known)} of {len(found)} packages audited, no vulnerability known")
    return bool(vulnerable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
