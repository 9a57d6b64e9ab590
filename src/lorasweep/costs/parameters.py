"""Parameters of a trial, to the unit: what is trained, and what there is in all."""

from dataclasses import dataclass
from functools import lru_cache

from lorasweep.costs.setting import Setting, setting_of
from lorasweep.costs.shapes import Linear, Shape
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


def count(trial: Trial, n_labels: int) -> Parameters:
    """Parameters of a trial whose task has ``n_labels`` classes."""
    return of(setting_of(trial, n_labels))


@lru_cache(maxsize=65536)
def of(s: Setting) -> Parameters:
    """Parameters of a trial with this setting."""
    if s.trains == "adapter":
        return adapter(s.shape, s.adapted, s.r, s.head)
    trained = s.shape.total if s.trains == "everything" else 0
    return Parameters(s.shape.total, 0, 0, 0, trained)


def adapter(shape: Shape, adapted: tuple[Linear, ...], r: int, head: str) -> Parameters:
    """Parameters with a rank-r update on these layers of every block.

    The head is kept twice by PEFT (``modules_to_save``): the original, frozen, and a copy that
    is trained. With ``full_lora`` both carry a low-rank update, which is the only reading under
    which all numbers of Table 4 of Patil et al. 2025 come out.

    Args:
        shape: the classifier.
        adapted: layers of one block that carry an update.
        r: rank.
        head: ``full`` or ``full_lora``.
    """
    blocks = shape.blocks * sum(layer.lora(r) for layer in adapted)
    on_head = sum(layer.lora(r) for layer in shape.head) if head == "full_lora" else 0
    copy = shape.head_parameters + on_head
    return Parameters(shape.total, blocks, copy, on_head, trainable=blocks + copy)
