"""Bases from GGUF files of our own making."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from lorasweep.errors import LorasweepError
from lorasweep.models import source

WIDTH, INNER, HEADS, BLOCKS = 32, 64, 2, 2


def described(file: Path) -> dict[str, Any]:
    return {"source": "path", "path": str(file), "name": "own", "shape": {}}


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """Write a Llama of two blocks; return it with its tensors by the names of GGUF."""
    draw = np.random.default_rng(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet, "ab"]
    made = gguf.GGUFWriter(tmp_path / "own.gguf", "llama")
    made.add_name("own")
    made.add_context_length(128)
    made.add_embedding_length(WIDTH)
    made.add_block_count(BLOCKS)
    made.add_feed_forward_length(INNER)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_rope_dimension_count(WIDTH // HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_vocab_size(len(words))
    made.add_tokenizer_model("gpt2")
    made.add_token_list(words)
    made.add_token_types([3, 3, *[1] * (len(words) - 2)])
    made.add_token_merges(["a b"])
    made.add_bos_token_id(0)
    made.add_eos_token_id(1)
    shapes = {"token_embd": (len(words), WIDTH), "output": (len(words), WIDTH)}
    shapes["output_norm"] = (WIDTH,)
    for block in range(BLOCKS):
        own = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        own |= {"ffn_up": (INNER, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        own |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in own.items()}
    tensors = {n: draw.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        if name.endswith("ffn_up"):
            packed = gguf.quants.quantize(tensor, q8)
            tensors[name] = gguf.quants.dequantize(packed, q8)
            made.add_tensor(f"{name}.weight", packed, raw_dtype=q8)
        else:
            made.add_tensor(f"{name}.weight", tensor)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return tmp_path / "own.gguf", tensors


def test_a_gguf_file_becomes_the_same_weights_once(
    file: tuple[Path, dict[str, np.ndarray[Any, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, tensors = file
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    assert source.problems(described(path)) == []
    base = source.locate(described(path), source.cache_home())
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before, "the library is left as it was"

    weights = load_file(base.folder / "model.safetensors")
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("output", "lm_head"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
        ("blk.1.ffn_up", "model.layers.1.mlp.up_proj"),
        ("blk.1.ffn_norm", "model.layers.1.post_attention_layernorm"),
    ):
        np.testing.assert_array_equal(weights[f"{ours}.weight"], tensors[theirs])
    assert len(weights) == len(tensors)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    assert tokenizer.decode(tokenizer("cab")["input_ids"], skip_special_tokens=True) == "cab"
    assert transformers.AutoConfig.from_pretrained(base.folder).num_hidden_layers == BLOCKS

    # What was read to its end and kept is not read again.
    monkeypatch.setattr(gguf, "GGUFReader", None)
    assert source.problems(described(path)) == []
    assert source.locate(described(path), source.cache_home()) == base


def test_a_gguf_file_that_is_cut_off_is_damaged(
    file: tuple[Path, dict[str, np.ndarray[Any, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    whole = file[0].read_bytes()
    file[0].write_bytes(whole[:-100])
    (said,) = source.problems(described(file[0]))
    assert "damaged" in said


@pytest.mark.parametrize(("architecture", "said"), [("other", "other"), ("llama", "tokenizer")])
def test_a_gguf_file_that_cannot_be_used_is_named(
    architecture: str, said: str, tmp_path: Path
) -> None:
    made = gguf.GGUFWriter(tmp_path / "own.gguf", architecture)
    made.add_name("own")
    made.add_tensor("token_embd.weight", np.zeros((4, WIDTH), np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    with pytest.raises(LorasweepError, match=f"own.gguf cannot be used: .*{said}"):
        source.locate(described(tmp_path / "own.gguf"), tmp_path / "cache")
    assert not list((tmp_path / "cache/models").iterdir()), "nothing half made is kept"
