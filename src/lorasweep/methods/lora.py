"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank updates; QLoRA is LoRA on a 4-bit base."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lorasweep.methods.base import Method, Parameters
from lorasweep.models import roles
from lorasweep.trial.key import Config, whole

if TYPE_CHECKING:
    import peft

    from lorasweep.costs.setting import Setting
    from lorasweep.trial.trial import Trial

_SETTINGS = {"method.type": "lora", "method.trains": "adapter"}
AS_LORA: tuple[str, Config] = ("method=lora", _SETTINGS)
AS_QLORA: tuple[str, Config] = ("method=qlora", {**_SETTINGS, "method.quant": "nf4"})


class Lora(Method):
    """y = W·x + (α/r)·B·A·dropout(x), with W frozen; the head is trained in full."""

    packed = (
        "method.name",
        "method.type",
        "method.trains",
        "method.quant",
        "method.double_quant",
        "method.compute_dtype",
        "method.kbit_prepare",
        "lora.r",
        "lora.alpha",
        "lora.dropout",
        "target.name",
        "target.roles",
        "target.head",
    )
    starts_at_zero = "lora_B"

    def parameters(self, setting: "Setting") -> Parameters:
        """Count a rank-r update on the adapted layers of every block, and the head.

        The head is kept twice by PEFT (``modules_to_save``): the original, frozen, and a copy
        that is trained. With ``full_lora`` both carry a low-rank update, which is the only
        reading under which all numbers of Table 4 of Patil et al. 2025 come out.
        """
        shape, r = setting.shape, setting.r
        blocks = shape.blocks * sum(layer.lora(r) for layer in setting.adapted)
        with_update = setting.head == "full_lora"
        on_head = sum(layer.lora(r) for layer in shape.head) if with_update else 0
        copy = shape.head_parameters + on_head
        return Parameters(shape.total, blocks, copy, on_head, trainable=blocks + copy)

    def problems(self, config: Config) -> list[str]:
        """Say what is wrong with rank, alpha, dropout and target modules."""
        problems = self.loose_problems(config)
        if not 0 <= config["lora.dropout"] < 1:
            problems.append(f"lora.dropout={config['lora.dropout']}: must be from 0 to below 1")
        wanted = config["target.roles"]
        if not wanted:
            problems.append("target.roles=[]: an adapter needs at least one layer")
        model_type = config.get("model.shape.model_type")
        if model_type is not None:
            where = f"target={config['target.name']} model={config['model.name']}"
            problems += [f"{where}: {text}" for text in roles.problems(model_type, tuple(wanted))]
        return problems

    def loose_problems(self, config: Config) -> list[str]:
        """Say what is wrong with rank and alpha."""
        r, alpha = config["lora.r"], config["lora.alpha"]
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            return [f"lora.r={r}: the rank must be a whole number of at least 1"]
        try:
            value = alpha_of(r, alpha)
        except ValueError as error:
            return [str(error)]
        if value <= 0:
            return [f"lora.alpha={alpha}: alpha must be above 0 (the update is scaled by alpha/r)"]
        return []

    def cheaper(self, config: Config) -> Sequence[tuple[str, Config]]:
        """Name QLoRA, unless the base is in 4 bits already."""
        return [] if config["method.quant"] in ("nf4", "fp4") else [AS_QLORA]

    def peft_config(self, trial: "Trial", layers: str, head: str) -> "peft.PeftConfig":
        """Return what PEFT is told; a fresh one each time, as PEFT writes into it."""
        import peft

        return peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=trial["lora.r"],
            lora_alpha=trial["lora.alpha"],
            lora_dropout=trial["lora.dropout"],
            target_modules=layers,
            modules_to_save=[head],
        )


METHOD = Lora()


def alpha_of(r: Any, alpha: Any) -> float:
    """Return alpha as a number; ``2r``, ``r`` and ``0.5r`` are multiples of the rank.

    Raises:
        ValueError: it is neither a number nor a multiple of r.
    """
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        return whole(alpha)
    factors = _factors(str(alpha).strip())
    if factors is None:
        raise ValueError(f"lora.alpha={alpha}: neither a number nor a multiple of r (r, 2r, 0.5r)")
    return whole(factors[0] * r / factors[1])


@lru_cache(maxsize=256)
def _factors(alpha: str) -> tuple[float, float] | None:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)?\s*\*?\s*r(?:/(\d+\.?\d*))?", alpha)
    return None if match is None else (float(match[1] or 1), float(match[2] or 1))
