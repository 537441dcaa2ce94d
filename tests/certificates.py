"""Certificates for this machine, made by openssl, and what clients need to believe them."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from process import environment

MADE = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"


@dataclass(frozen=True)
class Files:
    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def client(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """Who believes this certificate and no other, and speaks that version alone."""
        context = ssl.create_default_context(cafile=self.cert)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def replace_by(self, other: "Files") -> None:
        self.cert.write_bytes(other.cert.read_bytes())
        self.key.write_bytes(other.key.read_bytes())


HERE = "DNS:localhost,IP:127.0.0.1"


def make(directory: Path, name: str, hosts: str = HERE) -> Files:
    """A self-signed certificate for ``hosts``, of an organisation of that name."""
    files = Files(directory / f"{name}.crt", directory / f"{name}.key")
    command = [
        *("openssl", *MADE.split(), "-subj", f"/O={name}/CN=localhost"),
        *("-addext", f"subjectAltName={hosts}"),
        *("-keyout", str(files.key), "-out", str(files.cert)),
    ]
    subprocess.run(command, env=environment(), stderr=subprocess.DEVNULL, check=True)
    return files
