"""A frozen base in memory with its data: what the trials of a pack share."""

import copy
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import psutil
import torch
import transformers
from torch import nn
from torch.nn import functional

from lorasweep.engines.packed.adapter import Adapter, Template, skeleton
from lorasweep.engines.packed.bank import Bank
from lorasweep.engines.packed.compat import base_of
from lorasweep.engines.packed.layout import Lane, Pass, build
from lorasweep.engines.packed.modules import (
    Dense,
    FourBit,
    LastBlock,
    PackedDropout,
    PackedLinear,
    Stage,
    install,
)
from lorasweep.engines.packed.noise import Noise
from lorasweep.engines.packed.tokens import Side, side
from lorasweep.errors import LorasweepError
from lorasweep.models import load, padding, roles, source
from lorasweep.models.convert import DTYPES
from lorasweep.tasks import sources, tokens
from lorasweep.trial.trial import Trial

_CACHE_SHARE = 0.4  # of the free memory, which a dequantised copy may take


@dataclass(frozen=True)
class Family:
    """How an architecture comes from hidden states to scores.

    Attributes:
        body: name of the model without its head.
        pool_last: whether a text is judged by its last token, else by its first.
    """

    body: str
    pool_last: bool


_LLAMA = Family("model", pool_last=True)
FAMILIES = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "bert": Family("bert", pool_last=False),
    "roberta": Family("roberta", pool_last=False),
}


def _dropout(module: nn.Module) -> float:
    """Return what share a module of the base drops in training: of its input, or of attention."""
    if isinstance(module, PackedDropout):
        return module.p
    return float(getattr(module, "attention_dropout", 0.0))


def _check_positions(config: transformers.PretrainedConfig, longest: int) -> None:
    """Refuse positions that the longest text of a batch scales: here batches share a pass.

    Raises:
        LorasweepError: a text is long enough for that.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings", config.max_position_embeddings)
    if rope.get("rope_type") in ("dynamic", "longrope") and longest > limit:
        raise LorasweepError(
            f"packs cannot train this model on texts of more than {limit} tokens "
            f"(rope_type={rope['rope_type']}); use engine=trainer or train.max_length={limit}"
        )


class Base:
    """The base and the data of every trial for which ``compat.base_of`` is the same."""

    def __init__(self, trial: Trial) -> None:
        self.identity: Hashable = base_of(trial)
        self.device = load.device()
        self.strict = trial["engine.exactness"] == "strict"
        self.autocast = DTYPES[trial["train.precision"]]
        loaded = self._load(trial)
        model, kind = loaded.model, loaded.model.config.model_type
        _check_positions(model.config, int(max(self.train.lengths.max(), self.eval.lengths.max())))
        self.family = FAMILIES[kind]
        self.skeleton = skeleton(model.config, self._skeleton_dtype(trial))
        self.templates: dict[str, Template] = {}
        self.drawing = ThreadPoolExecutor(torch.get_num_threads())
        self.pad = int(model.config.pad_token_id)
        after_padding = kind in roles.FIRST_POSITION_AFTER_PADDING
        self.first_position = self.pad + 1 if after_padding else 0
        self.stage = Stage()
        install(model, roles.blocks_of(kind), self.stage, self._frozen(trial))
        model.requires_grad_(False)
        # Always: what differs between training and evaluation is said by the pass.
        model.train()
        self.body: nn.Module = model.get_submodule(self.family.body)
        self.pooler: nn.Module | None = getattr(self.body, "pooler", None)
        if self.pooler is not None:
            self.body.pooler = None  # run below, on pooled tokens alone
        self.drawn, pooler = loaded.drawn, f"{self.family.body}.pooler."
        others = [name for name in self.drawn if not name.startswith(pooler)]
        if others:
            raise LorasweepError(
                f"the checkpoint lacks {', '.join(others)}, which packs cannot draw for each "
                "trial; use engine=trainer"
            )
        own = getattr(model, "dropout", None)
        self.head_dropout = own.p if isinstance(own, PackedDropout) else 0.0
        self.drops = any(_dropout(m) > 0 for m in self.body.modules())
        if self.drops and self.family.pool_last and self.device.type == "cuda":
            slower = "steps were not recorded, which is slower: the base has dropout of its own"
            self.lineage["notes"].append(slower)
        self.linears = [m for m in model.modules() if isinstance(m, PackedLinear)]
        self.seated: Sequence[Bank] = ()
        self.blocks: nn.ModuleList = model.get_submodule(roles.blocks_of(kind))
        if self.family.pool_last:
            self.blocks[-1] = LastBlock(self.blocks[-1], self.stage)
        self._compiled: list[Any] | None = None
        self.layers = [m for m in model.modules() if isinstance(m, FourBit)]
        self.cached = trial["engine.nf4_cache"] == "auto" and self._room_for_copies()
        if self.cached:
            for layer in self.layers:
                layer.keep()

    def _load(self, trial: Trial) -> load.Loaded:
        cache = source.cache_home()
        found, task = source.locate(source.settings(trial), cache), trial.group("task")
        data = sources.load(task, cache)
        tokenizer = load.tokenizer(found.folder)
        length = int(trial["train.max_length"])
        parts = tokens.tokenise(data, task, tokenizer, found.tokenizer, length, cache)
        notes = padding.settle(tokenizer, found.folder, parts, length)
        pad: int = tokenizer.pad_token_id
        self.train, self.eval = (side(part, pad, self.device) for part in parts)
        self.lineage: dict[str, Any] = {
            "model": found.lineage,
            "data": {**data.provenance, "sha256": data.digest},
        }
        loaded = load.base(trial, found.folder, data.labels, pad)
        self.lineage["notes"] = [*notes, *loaded.notes]
        if trial["method.kbit_prepare"] and trial["method.quant"] is not None:
            peft.prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)
        return loaded

    @staticmethod
    def _skeleton_dtype(trial: Trial) -> torch.dtype:
        """PEFT draws A in the format of plain weights, and in float32 over 4-bit ones."""
        return torch.float32 if trial["method.quant"] else load.weight_dtype(trial)

    @staticmethod
    def _frozen(trial: Trial) -> Any:
        compute = DTYPES[trial["method.compute_dtype"]]
        return (lambda layer: FourBit(layer, compute)) if trial["method.quant"] else Dense

    def _room_for_copies(self) -> bool:
        if not self.layers:
            return False
        needed = sum(
            layer.packed.quant_state.shape.numel() * layer.dtype.itemsize for layer in self.layers
        )
        on_gpu = self.device.type == "cuda"
        free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
        return bool(needed <= _CACHE_SHARE * free)

    # ------------------------------------------------------------------------ a pass

    def lay_out(self, data: Side, lanes: list[Lane], *, training: bool) -> Pass:
        """Bring what the lanes read into one row of tokens."""
        return build(
            data,
            lanes,
            training=training,
            pool_last=self.family.pool_last,
            first_position=self.first_position,
        )

    def seat(self, banks: Sequence[Bank], noise: Noise | None) -> None:
        """Set whose lanes follow each other in even passes, and what drops their inputs."""
        if self.seated is not banks:
            self.seated = banks
            for i, linear in enumerate(self.linears):
                linear.seat(banks, None if noise is None else (noise.keys[i], noise.bars))

    @contextmanager
    def compiled_blocks(self, *, enabled: bool) -> Iterator[None]:
        """Within, run the transformer blocks as compiled.

        One compilation serves all but the last, which is not worth one of its own.
        """
        if not enabled:
            yield
            return
        alike = self.blocks[:-1]
        if self._compiled is None:
            self.body.embed_tokens.register_forward_hook(self._ease_compilation)
            self.body.rotary_emb.register_forward_hook(self._ease_compilation)
            for block in alike:
                block.compile()
            self._compiled = [block._compiled_call_impl for block in alike]
        for block, compiled in zip(alike, self._compiled, strict=True):
            block._compiled_call_impl = compiled
        try:
            yield
        finally:
            for block in alike:
                block._compiled_call_impl = None

    def _ease_compilation(self, _: nn.Module, __: Any, output: Any) -> None:
        """Make what enters the blocks alike, for one compilation in place of four.

        The first block's input is to need a gradient, as that of the others; and lengths vary.
        """
        if self.stage.now.even is None or not self.stage.now.training:
            return
        for tensor in output if isinstance(output, tuple) else (output.requires_grad_(),):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)

    def adapter(self, trial: Trial) -> Adapter:
        """Draw a trial's adapter and head."""
        target = str(trial["target.roles"])
        if target not in self.templates:
            self.templates[target] = Template(trial, self.skeleton)
        made = Adapter(trial, self.templates[target], self.device, self.drawing)
        made.set_dropouts(every_token=self.family.pool_last)
        if self.drawn and self.pooler is not None:
            made.pooler = copy.deepcopy(self.pooler)
            held = made.pooler.state_dict()  # shares the module's memory
            made.unfound = {f"{self.family.body}.pooler.{n}": v for n, v in held.items()}
            own = {name: made.unfound[name] for name in self.drawn}
            load.draw(own, trial["seed"], self.skeleton.config)
        return made

    def scores(self, now: Pass) -> list[torch.Tensor]:
        """Run the base and the heads: scores (texts, classes) of each lane, float32."""
        self.stage.now = now
        reduced = self.autocast != torch.float32
        with torch.autocast(self.device.type, self.autocast, enabled=reduced, cache_enabled=False):
            types = {} if now.types is None else {"token_type_ids": now.types}
            hidden = self.body(input_ids=now.ids, position_ids=now.positions, **types)[0]
            parts = zip(now.lanes, self._pooled(now, hidden), strict=True)
            return [self._head(now, lane, part).float() for lane, part in parts]

    def _pooled(self, now: Pass, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Return what the head of each lane reads, shape (texts, width)."""
        if now.even is not None:  # the last block has picked them, as many for every lane
            return [part[:count] for part, count in zip(hidden, now.texts, strict=True)]
        pooled = hidden.flatten(0, 1).index_select(0, now.pooled)
        if self.drawn:  # each trial has a pooler of its own
            parts = zip(now.lanes, pooled.split(now.texts), strict=True)
            return [lane.adapter.pooler(part[:, None]) for lane, part in parts]
        if self.pooler is not None:
            pooled = self.pooler(pooled[:, None])
        return list(pooled.split(now.texts))

    def _head(self, now: Pass, lane: Lane, pooled: torch.Tensor) -> torch.Tensor:
        adapter = lane.adapter
        adapter.lane = lane if now.training else None
        if now.training and self.head_dropout > 0:
            pooled = pooled * adapter.stream.noise(pooled.shape, self.head_dropout, pooled)
        if self.family.body == "roberta":  # its head takes the first token itself
            pooled = pooled[:, None]
        return adapter.head(pooled)

    def losses(self, now: Pass) -> list[torch.Tensor]:
        """Return what each lane adds to the mean loss of its optimizer step, shape ()."""
        parts = zip(now.lanes, self.scores(now), now.labels.split(now.texts), strict=True)
        return [functional.cross_entropy(part, labels) * lane.share for lane, part, labels in parts]
