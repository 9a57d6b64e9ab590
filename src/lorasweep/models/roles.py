"""What each linear layer of an architecture is for: ``target=attention`` means the same on all.

A role names a layer's place in a transformer block (query, key, value, output; gate, up,
down). The table maps it to the suffix of the module's name in transformers. A layer that
serves several roles at once (GPT-2's ``c_attn``) carries them joined by ``+``.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from lorasweep.trial.roles import NAMES

LLAMA = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    # "attention.output.dense" ends the same way: names are matched from the block on.
    "down": "output.dense",
}
GPT2 = {
    "query+key+value": "attn.c_attn",
    "output": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
ROLES: dict[str, dict[str, str]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "bert": BERT,
    "roberta": BERT,
    "gpt2": GPT2,
}
# The list of blocks, and the module that turns the last hidden state into class scores.
BLOCKS = {"llama": "model.layers", "bert": "bert.encoder.layer", "roberta": "roberta.encoder.layer"}
HEADS = {"llama": "score", "bert": "classifier", "roberta": "classifier", "gpt2": "score"}
# Where position ids begin after the padding token's id: that id, unless a configuration says other.
FIRST_POSITION_AFTER_PADDING = {"roberta": 1}


def blocks_of(model_type: str) -> str:
    """Dotted name of the list of transformer blocks in the sequence-classification model."""
    return BLOCKS.get(model_type, "transformer.h" if model_type == "gpt2" else BLOCKS["llama"])


def head_of(model_type: str) -> str:
    """Dotted name of the classification head."""
    return HEADS.get(model_type, "score")


def longest_text(shape: Mapping[str, Any]) -> int | None:
    """Tokens that a text may have at most, by the fields of ``config.json``; None: no limit known.

    RoBERTa's table of positions holds those up to the padding token's id, too, which no text has.
    """
    positions = shape.get("max_position_embeddings", shape.get("n_positions"))
    default = FIRST_POSITION_AFTER_PADDING.get(str(shape.get("model_type")))
    if positions is None:
        return None
    if default is None:
        return int(positions)
    padding = shape.get("pad_token_id")
    return int(positions) - (default if padding is None else int(padding)) - 1


@lru_cache(maxsize=256)
def problems(model_type: str, wanted: tuple[str, ...]) -> list[str]:
    """Say what is wrong with the roles asked of an architecture; an empty list if nothing is."""
    table = ROLES.get(model_type)
    if table is None:
        return [
            f"no layer roles are known for the architecture '{model_type}' "
            f"(known: {', '.join(ROLES)})"
        ]
    found: list[str] = []
    have = {part for role in table for part in role.split("+")}
    for role in wanted:
        name = role.removesuffix("?")
        if name not in NAMES:
            found.append(f"'{name}' is not a layer role (roles: {', '.join(NAMES)})")
        elif name not in have and not role.endswith("?"):
            present = ", ".join(n for n in NAMES if n in have)
            found.append(
                f"the architecture '{model_type}' has no '{name}' layer (it has: {present})"
            )
    plain = {role.removesuffix("?") for role in wanted}
    for role in table:
        parts = set(role.split("+"))
        if len(parts) > 1 and parts & plain and not parts <= plain:
            found.append(
                f"the architecture '{model_type}' holds {role.replace('+', ', ')} in one layer: "
                f"ask for all of them or none"
            )
    return found


def modules(model_type: str, wanted: Iterable[str]) -> dict[str, str]:
    """Role → name of the layer inside one block, for the roles asked for that the model has."""
    plain = {role.removesuffix("?") for role in wanted}
    return {r: name for r, name in ROLES[model_type].items() if set(r.split("+")) <= plain}
