"""The node's certificate: checked at the start, and read again when told to.

Each connection takes the context that is in force when it begins and keeps it. So a new
certificate is for new connections, and open streams go on with the one they know.
"""

import logging
import ssl
from pathlib import Path

import trio

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.transport import TlsStream

ALPN = ["http/1.1"]
"""No HTTP/2: a balancer in front speaks it to browsers."""

_log = logging.getLogger("gateway")


class Certificate:
    """The files ``tls_cert`` and ``tls_key``, and what they held when they were last read."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError when they cannot be used."""
        self._config = config
        self.context, self.expires = load(config)
        """And when the first of the chain expires, in seconds since 1970; 0: unknown."""
        self._turn = trio.Lock()

    async def handshake(self, stream: TlsStream) -> None:
        """As `TlsStream.do_handshake`. Each waits for its turn: the first step is a millisecond of
        arithmetic, and a crowd of them at once would stand in the way of everything else."""
        async with self._turn:
            pass  # whoever waits next runs when everybody else has run once more
        await stream.do_handshake()

    async def reload(self) -> None:
        """Read the files again; if they cannot be used, say so and keep what there is."""
        try:
            # In a thread: files may be far away.
            self.context, self.expires = await trio.to_thread.run_sync(load, self._config)
        except ConfigError as error:
            _log.error(
                "the certificate was not read again, the old one stays: %(why)s",
                {"why": str(error)},
            )
        else:
            _log.info("the certificate has been read again, for new connections")


def load(config: Config) -> tuple[ssl.SSLContext, float]:
    """TLS 1.2 or later with the ciphers of Python's defaults, and when the first certificate of the
    chain expires. Raises ConfigError."""
    read: dict[str, bytes] = {}
    for setting in ("tls_cert", "tls_key"):
        file = getattr(config, setting)
        try:
            read[setting] = Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}.") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_passphrase)
    except OSError as error:
        if not isinstance(error, ssl.SSLError):  # gone since: somebody is just replacing them
            told = str(error.strerror)
        elif error.reason == "KEY_VALUES_MISMATCH":
            told = "the key does not belong to the certificate"
        else:
            told = "they are no certificate and key in PEM"
        raise ConfigError(
            f"tls_cert and tls_key: {config.tls_cert} and {config.tls_key} cannot be used: {told}."
        ) from None
    return context, _expires(read["tls_cert"])


def _expires(chain: bytes) -> float:
    """When the first of its certificates does; 0 if one is none that we can read, as OpenSSL takes
    some that others do not."""
    # Here, as it takes 40 ms that a node without TLS need not spend on its start.
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        certificates = load_pem_x509_certificates(chain)
    except (ValueError, InvalidVersion):
        return 0.0
    return min(each.not_valid_after_utc.timestamp() for each in certificates)


def _no_passphrase() -> str:
    """There is nobody to type one when a node starts."""
    raise ConfigError("tls_key: the key has a passphrase; save it without, for the node to read.")
