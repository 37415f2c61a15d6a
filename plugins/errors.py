"""What can go wrong with plugins, in classes that a caller can tell apart.

Every message says what was given, what is allowed, and what to do next.
"""

__all__ = [
    "BadOption",
    "Incompatible",
    "NotRestored",
    "PipelineBusy",
    "PluginError",
    "UnknownPlugin",
]


class PluginError(ValueError):
    """Report a plugin that cannot be found, built, attached or restored."""


class UnknownPlugin(PluginError):
    """Report a name that no plugin has."""


class BadOption(PluginError):
    """Report an option that a plugin does not have, or a value that it does not take."""


class Incompatible(PluginError):
    """Report a plugin that cannot serve this pipeline, or not beside another plugin."""


class PipelineBusy(PluginError):
    """Report a change of plugins while the pipeline is running."""


class NotRestored(PluginError):
    """Report a pipeline that is not what it was before a plugin was attached."""
