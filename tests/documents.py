"""The documents of this repository, as tests read them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent

README = (ROOT / "README.md").read_text("utf-8")
REFERENCE = (ROOT / "gateway/README.md").read_text("utf-8")
DEPLOYING = (ROOT / "deploy/README.md").read_text("utf-8")

DOCUMENTS = tuple(
    path
    for folder in (".", ".github", "gateway", "deploy", "loadtest", "grafana")
    for path in sorted((ROOT / folder).glob("*.md"))
)
"""All that are written for people."""
