"""What upstreams speak, read into the normal view: one normalizer for each format.

They are pure: an upstream's events in, normal events out, and no time passes in them. They were
written from the vendors' public documentation, and take what others who speak the same formats add
or leave out, where the meaning is plain: fields and event types that are not known are ignored.
"""

from gateway.relay.formats.anthropic import Anthropic
from gateway.relay.formats.normalizer import Normalizer
from gateway.relay.formats.openai_chat import OpenAiChat
from gateway.relay.formats.openai_responses import OpenAiResponses
from gateway.relay.formats.passthrough import Passthrough
from gateway.relay.record import Format

__all__ = ["Normalizer", "normalizer"]


def normalizer(format: Format, path: str) -> Normalizer:
    """A new one for the answer to a request to ``path``, which is relative to the upstream's url.

    Where a vendor's streams at ``path`` have no text that is known here, as those of transcriptions
    or threads, the normal view is empty between its first event and its last.
    """
    match format, path.partition("?")[0].strip("/").rpartition("/")[2]:
        case Format.OPENAI, "completions":
            return OpenAiChat()
        case Format.OPENAI, "responses":
            return OpenAiResponses()
        case Format.ANTHROPIC, "messages":
            return Anthropic()
    return Passthrough()
