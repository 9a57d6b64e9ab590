"""Full fine-tuning: every weight is trained, nothing is adapted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorasweep.methods.base import Method, Parameters
from lorasweep.methods.lora import AS_LORA, AS_QLORA
from lorasweep.trial.key import Config

if TYPE_CHECKING:
    from lorasweep.costs.setting import Setting


class Full(Method):
    """All weights of the base and of the head are trained."""

    trains = "everything"

    def parameters(self, setting: "Setting") -> Parameters:
        """Count the classifier, all of it trained."""
        return Parameters(setting.shape.total, 0, 0, 0, trainable=setting.shape.total)

    def problems(self, config: Config) -> list[str]:
        """Refuse bases whose weights cannot be trained."""
        problems = []
        if config["method.quant"] is not None:
            problems.append(
                f"method={config['method.name']} method.quant={config['method.quant']}: quantised "
                "weights cannot be trained; use method=qlora, or method.quant=null"
            )
        if config["train.precision"] == "fp16" and config["train.master_weights"] == "none":
            problems.append(
                "train.precision=fp16 train.master_weights=none: float16 weights cannot be "
                "trained, as their gradients are scaled; use train.master_weights=float32, or bf16"
            )
        return problems

    def cheaper(self, config: Config) -> Sequence[tuple[str, Config]]:
        """Name LoRA, and then QLoRA."""
        return [AS_LORA, AS_QLORA]


METHOD = Full()
