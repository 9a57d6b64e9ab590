"""A sequence classifier as a list of layers, read off the fields of its configuration.

The fields are those of Hugging Face's ``config.json`` (``hidden_size``, ``num_hidden_layers``,
…); the layers are those of ``AutoModelForSequenceClassification`` in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from lorasweep.models import roles
from lorasweep.trial.trial import Trial

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
# What transformers assumes where a configuration is silent.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma": 16, "gemma2": 4}
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
# All fields that a shape is read from, and their names in a trial.
_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "type_vocab_size",
    "attention_bias",
    "mlp_bias",
    "n_inner",
    *_GPT2_NAMES.values(),
)
_SETTINGS = tuple(f"model.shape.{name}" for name in _FIELDS)


@dataclass(frozen=True)
class Linear:
    """One linear layer: its role (``query``, …; a name in the head), widths and bias."""

    role: str
    d_in: int
    d_out: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Elements of the matrix."""
        return self.d_in * self.d_out

    @property
    def parameters(self) -> int:
        """Elements of the matrix and the bias."""
        return self.weights + (self.d_out if self.bias else 0)

    def lora(self, r: int) -> int:
        """Elements of a rank-r update: A is r × d_in, B is d_out × r (arXiv:2106.09685, 4.1)."""
        return r * (self.d_in + self.d_out)


@dataclass(frozen=True, eq=False)
class Shape:
    """Widths and layers of a classifier; counts are elements, not bytes.

    Made once for the same fields (``from_fields``), so that shapes compare by identity.
    """

    family: str  # llama, bert or gpt2: how a block is wired
    model_type: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]  # of one block
    norms: int  # elements of one block's norms
    norms_per_block: int
    embeddings: int
    outside: int  # norms and poolers before, after and between the blocks
    head: tuple[Linear, ...]

    @cached_property
    def block_weights(self) -> int:
        """Elements of the matrices in all blocks: what quantisation stores in few bits."""
        return self.blocks * sum(layer.weights for layer in self.linears)

    @cached_property
    def head_parameters(self) -> int:
        """Elements of the classification head."""
        return sum(layer.parameters for layer in self.head)

    @cached_property
    def total(self) -> int:
        """Elements of the whole classifier."""
        block = sum(layer.parameters for layer in self.linears) + self.norms
        return self.embeddings + self.blocks * block + self.outside + self.head_parameters


@lru_cache(maxsize=1024)
def adapted(shape: Shape, wanted: tuple[str, ...]) -> tuple[Linear, ...]:
    """Layers of one block that carry an adapter for these roles."""
    chosen = roles.modules(shape.model_type, wanted)
    return tuple(layer for layer in shape.linears if layer.role in chosen)


def shape_of(trial: Trial, n_labels: int) -> Shape:
    """Shape of a trial's classifier with ``n_labels`` outputs."""
    config = trial.config
    return _made(tuple(config.get(name) for name in _SETTINGS), n_labels)


def from_fields(fields: Mapping[str, Any], n_labels: int) -> Shape:
    """Shape from the fields of a Hugging Face configuration.

    Raises:
        KeyError: the architecture is not known or a needed field is missing.
    """
    return _made(tuple(fields.get(name) for name in _FIELDS), n_labels)


@lru_cache(maxsize=1024)
def _made(values: tuple[Any, ...], n_labels: int) -> Shape:
    pairs = zip(_FIELDS, values, strict=True)
    fields = {name: value for name, value in pairs if value is not None}
    model_type = str(fields["model_type"])
    if model_type in LLAMA_LIKE:
        return _llama(model_type, fields, n_labels)
    if model_type in ("bert", "roberta"):
        return _bert(model_type, fields, n_labels)
    if model_type == "gpt2":
        return _gpt2(fields, n_labels)
    raise KeyError(f"no shape is known for the architecture '{model_type}'")


def _llama(model_type: str, fields: Mapping[str, Any], n_labels: int) -> Shape:
    """Decoder with gated feed-forward layers and RMS norms; the head has no bias."""
    d, f, n = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    kv = fields.get("num_key_value_heads", _KV_HEADS.get(model_type, n))
    head_dim = fields.get("head_dim", _HEAD_DIM.get(model_type, d // n))
    qkv_bias = bool(model_type == "qwen2" or fields.get("attention_bias", False))
    o_bias = bool(model_type != "qwen2" and fields.get("attention_bias", False))
    mlp_bias = bool(fields.get("mlp_bias", False))
    norms_per_block = 4 if model_type == "gemma2" else 2
    per_head_norms = 2 * head_dim if model_type == "qwen3" else 0  # of queries and keys
    linears = (
        Linear("query", d, n * head_dim, qkv_bias),
        Linear("key", d, kv * head_dim, qkv_bias),
        Linear("value", d, kv * head_dim, qkv_bias),
        Linear("output", n * head_dim, d, o_bias),
        Linear("gate", d, f, mlp_bias),
        Linear("up", d, f, mlp_bias),
        Linear("down", f, d, mlp_bias),
    )
    return Shape(
        family="llama",
        model_type=model_type,
        blocks=fields["num_hidden_layers"],
        hidden=d,
        intermediate=f,
        heads=n,
        kv_heads=kv,
        head_dim=head_dim,
        linears=linears,
        norms=norms_per_block * d + per_head_norms,
        norms_per_block=norms_per_block,
        embeddings=fields["vocab_size"] * d,
        outside=d,
        head=(Linear("score", d, n_labels),),
    )


def _bert(model_type: str, fields: Mapping[str, Any], n_labels: int) -> Shape:
    """Encoder with biases everywhere; BERT has a pooler, RoBERTa a head of two layers."""
    d, f, n = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    linears = (
        Linear("query", d, d, bias=True),
        Linear("key", d, d, bias=True),
        Linear("value", d, d, bias=True),
        Linear("output", d, d, bias=True),
        Linear("up", d, f, bias=True),
        Linear("down", f, d, bias=True),
    )
    rows = fields["vocab_size"] + fields["max_position_embeddings"] + fields["type_vocab_size"]
    dense = Linear("dense", d, d, bias=True)
    head: tuple[Linear, ...]
    if model_type == "bert":
        outside, head = 2 * d + dense.parameters, (Linear("classifier", d, n_labels, bias=True),)
    else:
        outside, head = 2 * d, (dense, Linear("out_proj", d, n_labels, bias=True))
    return Shape(
        family="bert",
        model_type=model_type,
        blocks=fields["num_hidden_layers"],
        hidden=d,
        intermediate=f,
        heads=n,
        kv_heads=n,
        head_dim=d // n,
        linears=linears,
        norms=4 * d,
        norms_per_block=2,
        embeddings=rows * d,
        outside=outside,
        head=head,
    )


def _gpt2(fields: Mapping[str, Any], n_labels: int) -> Shape:
    """Decoder with one layer for query, key and value; the head has no bias."""
    known = {name: fields.get(name, fields.get(old)) for name, old in _GPT2_NAMES.items()}
    d, n = int(known["hidden_size"] or 0), int(known["num_attention_heads"] or 0)
    f = int(fields.get("n_inner") or 4 * d)
    linears = (
        Linear("query+key+value", d, 3 * d, bias=True),
        Linear("output", d, d, bias=True),
        Linear("up", d, f, bias=True),
        Linear("down", f, d, bias=True),
    )
    return Shape(
        family="gpt2",
        model_type="gpt2",
        blocks=int(known["num_hidden_layers"] or 0),
        hidden=d,
        intermediate=f,
        heads=n,
        kv_heads=n,
        head_dim=d // n,
        linears=linears,
        norms=4 * d,
        norms_per_block=2,
        embeddings=(fields["vocab_size"] + int(known["max_position_embeddings"] or 0)) * d,
        outside=2 * d,
        head=(Linear("score", d, n_labels),),
    )
