"""A gateway for Server-Sent Events that loses nothing silently."""

__version__ = "0.1.0"
