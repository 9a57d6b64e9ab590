"""No training: the base with a freshly drawn head, evaluated once."""

from typing import TYPE_CHECKING

from lorasweep.methods.base import Method, Parameters

if TYPE_CHECKING:
    from lorasweep.costs.setting import Setting


class Untrained(Method):
    """Nothing is trained."""

    trains = None

    def parameters(self, setting: "Setting") -> Parameters:
        """Count the classifier, none of it trained."""
        return Parameters(setting.shape.total, 0, 0, 0, trainable=0)


METHOD = Untrained()
