"""What autograd keeps alive for the backward pass, and what lives only for a moment.

Read off the forward functions of transformers, PEFT and bitsandbytes, tensor by tensor, and
checked in ``tests/test_costs.py`` against the storages that are alive in a real step. Below, d
is the hidden width, f the feed-forward width, and all is in bytes a token of one block unless
said otherwise.
"""

from collections.abc import Iterable

from lorasweep.costs.setting import Setting
from lorasweep.costs.shapes import Linear

# Layers that read the same tensor.
_SOURCE = {
    "query": "first norm",
    "key": "first norm",
    "value": "first norm",
    "query+key+value": "first norm",
    "output": "attention",
    "gate": "second norm",
    "up": "second norm",
    "down": "product",
}


def block(s: Setting) -> float:
    """Bytes that one block keeps for the backward pass, for a whole batch."""
    mask = s.element * s.length  # an additive mask a text and block, made from the boolean one
    return s.batch * s.length * (kept_by_block(s) + adapters(s) + mask) + weight_casts(s)


def weight_casts(s: Setting) -> float:
    """Bytes of the 16-bit copies of one block's matrices, where they are trained in float32."""
    return float(s.element * sum(layer.weights for layer in s.shape.linears)) if s.masters else 0.0


def kept_by_block(s: Setting) -> float:
    """Bytes a token that one block keeps without its adapters."""
    return norms(s) + attention(s) + feed_forward(s) + inputs(s)


def norms(s: Setting) -> float:
    """Inputs of the norms in float32, their statistics, and dropout masks beside them.

    A trained RMS norm also keeps its normalised input, in the type of that.
    """
    shape = s.shape
    d, n = shape.hidden, shape.norms_per_block
    if shape.family != "llama":
        return n * (4 * d + 8) + 2 * d
    inner = rows = 0
    if shape.model_type == "qwen3":  # one norm for each query and key head
        rows = shape.heads + shape.kv_heads
        inner = shape.head_dim * rows
    kept = 4.0 * (n * d + inner + n + rows)
    return kept + (s.stream * n * d + s.element * inner if s.trains == "everything" else 0)


def attention(s: Setting) -> float:
    """Queries, keys, values and output of SDPA, and a float32 for each head.

    With a padding mask transformers repeats keys and values for each query head.
    """
    shape = s.shape
    width = shape.heads * shape.head_dim
    return 4 * s.element * width + 4 * shape.heads


def feed_forward(s: Setting) -> float:
    """Inputs of the activation function and of the gating product."""
    f = s.shape.intermediate
    if s.shape.family == "llama":
        return 3 * (s.stream if s.kbit_prepare else s.element) * f
    if s.shape.family == "gpt2":  # tanh written out, in float32 from the cube on
        return (12 + s.element) * f
    return s.element * f


def inputs(s: Setting) -> float:
    """Inputs of layers whose weights are trained, or which int8 layers keep."""
    if s.trains != "everything" and s.quant != "int8":
        return 0.0
    return s.element * distinct_inputs(s, s.shape.linears)


def distinct_inputs(s: Setting, layers: Iterable[Linear]) -> int:
    """Widths of the tensors that these layers read, each tensor once.

    The output layer reads what SDPA keeps anyway. Where the stream is float32, autocast makes
    a 16-bit copy for each layer.
    """
    if s.autocast and s.stream == 4:
        return sum(layer.d_in for layer in layers if layer.role != "output")
    sources = {_SOURCE[layer.role]: layer.d_in for layer in layers if layer.role != "output"}
    return sum(sources.values())


def adapters(s: Setting) -> float:
    """What LoRA keeps: dropout masks, a copy of each input after dropout, outputs of A.

    PEFT casts the input to float32 where the base is not quantised, so that even without
    dropout autocast makes a 16-bit copy for each layer. Adapter weights are cast to 16 bits
    once a forward pass and kept.
    """
    layers = s.adapted
    if not layers:
        return 0.0
    widths = sum(layer.d_in for layer in layers)
    outputs = s.element * s.r * len(layers)
    weights = sum(layer.lora(s.r) for layer in layers) * 2 if s.autocast else 0
    tokens = s.batch * s.length
    if s.dropout > 0:
        kept = float(widths + s.element * widths)
    elif s.autocast and s.quant is None:
        kept = float(s.element * widths)
    else:
        kept = float(s.element * distinct_inputs(s, layers))
    return kept + outputs + weights / tokens


def stored(s: Setting) -> float:
    """Bytes that one block keeps from the forward to the backward pass, for a whole batch.

    With checkpointing that is its input. bitsandbytes' int8 layers hold their inputs past
    autograd, where checkpointing does not reach them.
    """
    if not s.checkpointing:
        return block(s)
    kept = s.stream * s.shape.hidden
    if s.quant == "int8":
        output = next(layer for layer in s.shape.linears if layer.role == "output")
        kept += s.element * (distinct_inputs(s, s.shape.linears) + output.d_in)
    return float(s.batch * s.length * kept)


def tail(s: Setting) -> float:
    """Bytes kept outside the blocks, for a whole batch: the last norm, the head's input."""
    kept = (4 + s.element) * s.shape.hidden if s.shape.family != "bert" else 0
    return s.batch * s.length * (kept + s.stream * s.shape.hidden)


def forward_buffers(s: Setting) -> float:
    """Bytes that live for a moment at the last layer of a block, for a whole batch.

    They are its input, the copies that LoRA makes of it, and the restored matrix.
    """
    tokens, d = s.batch * s.length, s.shape.hidden
    down = next(layer for layer in s.shape.linears if layer.role == "down")
    product = 0 if s.trains == "everything" else s.element * down.d_in
    base = dequantised(s) + tokens * (lifted(s) * down.d_in)
    adapter = 0.0
    if down in s.adapted and s.autocast and s.quant is None:
        adapter = tokens * down.d_in * (8.0 if s.dropout > 0 else 4.0)
    return tokens * (product + 2 * s.element * d) + max(base, adapter)


def lifted(s: Setting) -> int:
    """Bytes a number of the copy of a 4-bit layer's input in its compute type."""
    return s.compute if s.quant in ("nf4", "fp4") and s.compute != s.element else 0


def dequantised(s: Setting) -> float:
    """Bytes of the largest matrix of a block, restored from its few bits (bitsandbytes).

    Where the compute type is float32, autocast makes a 16-bit copy of it.
    """
    if s.quant is None:
        return 0.0
    size = s.element
    if s.quant != "int8":
        size = s.compute + (lifted(s) and s.element)
    return float(size * max(layer.weights for layer in s.shape.linears))


def norm_buffers(s: Setting) -> float:
    """Bytes that live for a moment in the backward pass of a norm, for a whole batch."""
    return s.batch * s.length * 18.0 * s.shape.hidden


def evaluation(s: Setting) -> float:
    """Bytes of an evaluation batch: the widest moment of a block."""
    shape, tokens = s.shape, s.eval_batch * s.length
    lifted = 6 if s.quant is None and s.autocast and s.adapted else 2 * s.element
    wide = (s.element + lifted) * shape.intermediate + 3 * s.stream * shape.hidden
    return tokens * (wide + s.element * s.length)
