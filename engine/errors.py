"""The exceptions Lariat raises for what a user can cause, and how they quote from files.

Each carries one sentence.
"""


class LariatError(Exception):
    """Base of all of Lariat's own errors."""


class GGUFError(LariatError, ValueError):
    """The file is not a GGUF file that can be read: says the file, what was found, what is due."""


class ModelError(LariatError, ValueError):
    """The file is sound, but its model is not one that this engine runs."""


class ContextError(LariatError, ValueError):
    """A prompt does not fit into the context."""


class ChatError(LariatError, ValueError):
    """A conversation, or the template that it is to be written with, cannot be used."""


def quote(text: str, limit: int = 64) -> str:
    """Text from a file, safe to print: control characters escaped, cut after `limit` characters."""
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."
