"""Methods: what is trained, one file each, found by the setting ``method.type``.

A name without a dot is a module of this package; one with a dot is any module that Python finds.
The module holds a ``Method`` (``base``) as ``METHOD``. What needs torch is in ``build`` and
``heads``.
"""

from lorasweep import plugins
from lorasweep.errors import nearest
from lorasweep.methods.base import Method
from lorasweep.trial.key import Config, method_type

NAMES = ("full", "lora", "untrained")


def of(config: Config) -> Method:
    """Return the method of a trial.

    Raises:
        UnknownPluginError: there is none of this name.
    """
    return load(method_type(config))


def load(name: str) -> Method:
    """Return the method of a type.

    Raises:
        UnknownPluginError: there is no module of this name, or it holds no method.
    """
    method = getattr(plugins.load(__name__, name), "METHOD", None)
    if not isinstance(method, Method):
        raise plugins.UnknownPluginError(f"the module {name} has no METHOD")
    return method


def problems(config: Config) -> list[str]:
    """Say what is wrong with the method of a trial and its settings."""
    name = method_type(config)
    try:
        method = load(name)
    except plugins.UnknownPluginError as error:
        known = f"{nearest(name, NAMES)} (known: {', '.join(NAMES)})"
        return [f"method.type={name}: {error}{known}"]
    if config["method.trains"] != method.trains:
        asked, trained = (
            "null" if value is None else value for value in (config["method.trains"], method.trains)
        )
        return [f"method.type={name} needs method.trains={trained}, not {asked}"]
    return method.problems(config)
