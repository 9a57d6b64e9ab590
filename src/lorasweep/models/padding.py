"""Tokens against the base that reads them: what pads, and whether the base knows them all."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import transformers

from lorasweep.errors import LorasweepError
from lorasweep.models import roles

if TYPE_CHECKING:
    import datasets

Ints = npt.NDArray[np.integer[Any]]


def settle(
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path,
    sides: "Sequence[datasets.Dataset]",
    max_length: int,
) -> list[str]:
    """Give a tokenizer that has none a padding token that changes no score.

    Args:
        tokenizer: of the base; afterwards it has a padding token.
        folder: of the base.
        sides: the tokenised texts, of training and evaluation.
        max_length: tokens of a text at most, and of one that is padded to it.

    Returns:
        What people should know of it, in sentences.

    Raises:
        LorasweepError: the texts hold tokens that the base does not know, or may be too long.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    known = config.get_text_config().vocab_size
    highest = max((int(tokens.max(initial=-1)) for tokens, _ in _texts(sides)), default=-1)
    if highest >= known:
        raise LorasweepError(
            f"{folder}: the texts hold the token {highest} "
            f"('{tokenizer.convert_ids_to_tokens(highest)}'), of which the base has no embedding "
            f"(it has {known}); the tokenizer is not that of the base"
        )
    notes = []
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _harmless(tokenizer, config, sides)
        notes.append(f"the tokenizer has no padding token; '{tokenizer.pad_token}' pads")
    theirs = getattr(config, "pad_token_id", None)
    if config.model_type in roles.FIRST_POSITION_AFTER_PADDING and theirs not in (
        None,
        tokenizer.pad_token_id,
    ):
        notes.append(
            f"the tokenizer pads with token {tokenizer.pad_token_id}, after which position ids "
            f"begin here, while config.json says {theirs}"
        )
    padding = max(tokenizer.pad_token_id, theirs or 0)
    limit = roles.longest_text({**config.to_dict(), "pad_token_id": padding})
    if limit is not None and max_length > limit:
        raise LorasweepError(f"{folder} reads at most {limit} tokens; lower train.max_length")
    return notes


def _harmless(
    tokenizer: transformers.PreTrainedTokenizerBase,
    config: transformers.PretrainedConfig,
    sides: "Sequence[datasets.Dataset]",
) -> str:
    """Return a token that can pad: a text must not seem to end, or to have a gap, where it is.

    A decoder's text is judged by its last token that does not look like padding; RoBERTa counts
    positions without it; BERT looks at the mask alone.
    """
    vocabulary = range(min(len(tokenizer), config.get_text_config().vocab_size))
    own = (tokenizer.unk_token_id, tokenizer.eos_token_id, getattr(config, "pad_token_id", None))
    if config.model_type in roles.FIRST_POSITION_AFTER_PADDING:
        own = own[::-1]
        taken = {int(token) for tokens, _ in _texts(sides) for token in np.unique(tokens)}
    elif roles.head_of(config.model_type) == "score":
        taken = {int(token) for tokens, ends in _texts(sides) for token in np.unique(tokens[ends])}
    else:
        taken = set()
    for token in (*own, *vocabulary):
        if token is not None and token in vocabulary and token not in taken:
            return str(tokenizer.convert_ids_to_tokens(token))
    raise LorasweepError(
        f"the tokenizer has no padding token, and there is none that no text ends with; give "
        f"{tokenizer.name_or_path} one"
    )


def _texts(sides: "Sequence[datasets.Dataset]") -> Iterator[tuple[Ints, Ints]]:
    """Go through the tokens of all texts, and the places of the last of each text."""
    for side in sides:
        for part in side.data.column("input_ids").chunks:
            lengths = part.value_lengths().to_numpy(zero_copy_only=False)
            ends = np.cumsum(lengths)[lengths > 0] - 1
            yield part.flatten().to_numpy(zero_copy_only=False), ends
