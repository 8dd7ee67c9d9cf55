"""The exceptions that Lariat raises for errors of users and files. Each message is one sentence."""


class LariatError(Exception):
    """Base of all errors of Lariat."""


class GGUFError(LariatError, ValueError):
    """A file cannot be read as GGUF: names the file, what was found, and what was expected."""


class ModelError(LariatError, ValueError):
    """The file is sound, but this engine does not run its model."""


class ContextError(LariatError, ValueError):
    """A prompt does not fit into the context, or a saved context or chunk cannot be used."""


class PreparedError(LariatError):
    """A file of prepared weights cannot be used or written."""


class HubError(LariatError):
    """A model cannot be found on the Hugging Face Hub or in its cache, or cannot be fetched."""


class ChatError(LariatError, ValueError):
    """A conversation or its template cannot be used."""


def quote(text: str, limit: int = 64) -> str:
    """Text from a file, safe to print: control characters escaped, at most `limit` characters."""
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."
