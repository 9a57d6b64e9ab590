"""Bases from GGUF files of our own making, and what says which base it is."""

from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import transformers
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers

from lorasweep.errors import LorasweepError
from lorasweep.models import convert, source
from lorasweep.request import request
from lorasweep.space.composition import Composer
from lorasweep.trial.trial import Trial

WIDTH, INNER, HEADS, BLOCKS = 32, 64, 2, 2


def described(file: Path) -> dict[str, Any]:
    return {"source": "path", "path": str(file), "name": "own", "shape": {}}


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """A Llama of two blocks, with its tensors by the names of GGUF."""
    return written(tmp_path)


def written(
    tmp_path: Path, without: str | None = None
) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """Write such a file, all of it or without one tensor."""
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
    tensors.pop(without, None)
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


def test_a_gguf_file_that_lacks_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    path, _ = written(tmp_path, without="blk.1.attn_q")
    with pytest.raises(LorasweepError, match=r"lacks weights \(model.layers.1.self_attn.q_proj"):
        source.locate(described(path), source.cache_home())


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


def folder_of(place: Path, word: str = "weights") -> Path:
    """Write files of the names that a model's folder has."""
    place.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "notes.txt"):
        (place / name).write_text(f"{name} {word}")
    return place


def key(composer: Composer, *typed: str) -> str:
    (trial,) = request.with_content([Trial(composer(typed).flat)])
    return trial.key


def test_what_a_folder_holds_is_in_the_key_and_not_its_path(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(path: Path | str) -> str:
        return key(composer, "model=llama3_8b", "model.source=path", f"model.path={path}")

    folder = folder_of(tmp_path / "model")
    before, copied = of(folder), of(folder_of(tmp_path / "copy"))
    monkeypatch.chdir(tmp_path)
    assert before == copied == of("model") == of("copy/../model/")
    (folder / "notes.txt").write_text("of no weight")
    assert of(folder) == before
    seen = {before}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(f"{name} another")
        assert of(folder) not in seen
        seen.add(of(folder))


def test_a_gguf_file_replaced_is_another_trial(
    composer: Composer, file: tuple[Path, dict[str, np.ndarray[Any, Any]]]
) -> None:
    def of() -> str:
        return key(composer, "model.source=path", f"model.path={file[0]}")

    before = of()
    file[0].write_bytes(file[0].read_bytes()[:-1] + b"x")
    assert of() != before


def test_large_weights_are_read_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "_LARGE", 1)
    weights = tmp_path / "model.safetensors"
    weights.write_text("one")
    first = source.sha256(weights)
    with monkeypatch.context() as reading:
        reading.setattr(source, "_sha256", None)  # another process would read it again
        assert source.sha256(weights) == first
    weights.write_text("two")  # of the same size
    assert source.sha256(weights) != first


def test_a_pinned_package_is_its_version_and_nothing_is_read(composer: Composer) -> None:
    flat = composer(["model=minilm"]).flat
    assert request.with_content([Trial(flat)])[0].config == flat


COMMITS = {"main": "a" * 40, None: "a" * 40, "old": "b" * 40}


def test_a_branch_of_the_hub_is_the_commit_it_stands_for(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def model_info(self, name: str, *, revision: str | None, timeout: float) -> Any:
            return huggingface_hub.ModelInfo(id=name, sha=COMMITS[revision])

    def of(revision: str | None) -> str:
        source.commit_of.cache_clear()
        return key(composer, "model=roberta_base", f"model.revision={revision or 'null'}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    pinned = of("a" * 40)
    assert of("main") == of(None) == pinned
    assert of("old") == of("b" * 40) != pinned
    monkeypatch.setitem(COMMITS, "main", "c" * 40)  # somebody pushed
    assert of("main") == of("c" * 40) != pinned


def test_without_the_hub_a_branch_is_what_the_cache_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline:
        def model_info(self, *_: Any, **__: Any) -> Any:
            raise OfflineModeIsEnabled("offline")

    kept = tmp_path / "models--own--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("a" * 40)
    (kept / "snapshots").mkdir()
    folder_of(kept / "snapshots" / ("a" * 40))
    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = {"source": "hub", "id": "own/model", "revision": "main"}
    source.commit_of.cache_clear()
    assert source.identity(model) == {"revision": "a" * 40}
    source.commit_of.cache_clear()
    assert source.identity({**model, "revision": "other"}) == {}


def test_tokens_are_those_of_the_tokenizer_that_is_there(tmp_path: Path) -> None:
    base = source.Base(tmp_path / "base", {})
    convert.byte_tokenizer().save_pretrained(base.folder)
    first = base.tokenizer
    assert base.tokenizer == first
    words = base.folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"<s>"', '"<t>"'))
    assert base.tokenizer != first


def test_a_folder_without_the_tokenizer_of_its_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (said,) = source.problems(described(tmp_path))
    assert "has no tokenizer" in said
    words = convert.byte_tokenizer()
    words.save_pretrained(tmp_path)
    assert source.problems(described(tmp_path)) == []
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})  # that no text is made of
    words.save_pretrained(tmp_path)
    assert source.problems(described(tmp_path)) == []
    words.add_tokens(["lovelier", "duller"])
    words.save_pretrained(tmp_path)
    (said,) = source.problems(described(tmp_path))
    assert "no embedding for (lovelier, duller; the embedding ends at 260)" in said


@pytest.mark.parametrize("kind", ["Bert", "Llama", "GPT2"])
def test_a_folder_with_holes_is_refused(kind: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=260, **shape, intermediate_size=8)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    convert.byte_tokenizer().save_pretrained(tmp_path)
    assert source.problems(described(tmp_path)) == []
    weights = load_file(tmp_path / "model.safetensors")
    kept = {n: w for n, w in weights.items() if ".1." not in n}
    save_file(kept, tmp_path / "model.safetensors")
    (said,) = source.problems(described(tmp_path))
    assert "the checkpoint is not whole" in said
    of = {"Bert": "6 of the 12", "Llama": "7 of the 14", "GPT2": "4 of the 8"}
    assert f"it lacks {of[kind]} linear layers" in said
