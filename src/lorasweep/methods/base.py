"""What a method answers for. Imports nothing heavy, as plans and refusals ask it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorasweep.trial.key import Config

if TYPE_CHECKING:
    import peft

    from lorasweep.costs.setting import Setting
    from lorasweep.trial.trial import Trial


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements, counted as PEFT's ``get_nb_trainable_parameters`` does.

    A quantised weight counts as the elements it stands for, not as the bytes that hold it.
    """

    base: int  # the classifier as loaded, its original head included
    adapters: int  # low-rank updates in the blocks
    head: int  # trained copy of the head, with its own low-rank update if it has one
    frozen_head_lora: int  # low-rank update on the original head, which is never trained
    trainable: int

    @property
    def total(self) -> int:
        """All elements, trained or not."""
        return self.base + self.adapters + self.head + self.frozen_head_lora

    @property
    def percent(self) -> float:
        """Trained share of the total, in percent."""
        return 100 * self.trainable / self.total


class Method(ABC):
    """One way to train a model. A module of a method holds one of these as ``METHOD``.

    What is not overridden is right for a method that has no settings of its own and that packs
    do not know.
    """

    #: ``adapter``, ``everything`` or None: what ``method.trains`` has to be.
    trains: ClassVar[str | None] = "adapter"
    #: Settings of ``method``, ``lora`` and ``target`` that the packed engine obeys; None if it
    #: cannot train the method at all.
    packed: ClassVar[tuple[str, ...] | None] = None
    #: Part of the names of weights that start at zero and that training must move; "" if none do.
    starts_at_zero: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        # Not inherited: packs would train a method that is built on LoRA as LoRA itself.
        cls.packed = cls.__dict__.get("packed")

    @abstractmethod
    def parameters(self, setting: "Setting") -> Parameters:
        """Count what there is and what is trained."""

    def problems(self, config: Config) -> list[str]:
        """Say what is wrong with the settings of a trial, each a sentence that says where."""
        return []

    def loose_problems(self, config: Config) -> list[str]:
        """Say what ``problems`` says that may differ where only ``key.LOOSE`` settings do."""
        return []

    def cheaper(self, config: Config) -> Sequence[tuple[str, Config]]:
        """Name what takes less memory: words to type and the settings they stand for.

        The one that alters a trial least comes first.
        """
        return []

    def peft_config(self, trial: "Trial", layers: str, head: str) -> "peft.PeftConfig":
        """Return what PEFT is told; asked only of methods that train an adapter.

        Args:
            trial: what is to be trained.
            layers: regular expression for the full names of the adapted layers.
            head: name of the module that is trained in full and saved with the adapter.

        Raises:
            TypeError: the method trains no adapter, or does not say how.
        """
        raise TypeError(f"{type(self).__name__} tells PEFT nothing")
