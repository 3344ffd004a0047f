"""Every error this package raises on purpose. Its text says what was seen, what was wanted, what to type.

AstraeaError
    ConfigError     a flag or an ASTRAEA_* variable has a bad value
    HintError       a request's program hints are malformed (HTTP 400)
    ModelError      the model cannot be built
    ServerError     a server did not start, or went away
    SeamError       the installed SGLang differs from the one this package hooks into
"""


class AstraeaError(Exception):
    """Base of all errors raised on purpose; its text is one line, meant for the user."""


class ConfigError(AstraeaError):
    """A flag or an ASTRAEA_* variable has a bad value."""


class HintError(AstraeaError, ValueError):
    """A request's program hints are malformed; names the field. A ValueError, which SGLang answers with HTTP 400."""


class ModelError(AstraeaError):
    """A model cannot be built: download, checksum or conversion failed."""


class ServerError(AstraeaError):
    """A server did not start, or went away."""


class SeamError(AstraeaError):
    """The installed SGLang differs from the one this package hooks into."""
