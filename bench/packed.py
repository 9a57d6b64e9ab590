"""Measure trial-steps a second on one GPU: packs against what people would otherwise run.

    python bench/packed.py --model 135m --arm packed --ranks 64 --method lora --seconds 60

One arm of one setting a call, one row a call, appended to $OUT/packed.csv (or bench/results).
Everything is made on the spot and nothing is fetched: bases of the real shapes with random
weights, texts with the lengths of Yelp reviews (or real ones: ``--texts file.csv``), batch 8,
128 tokens, bf16. Arms:

    trainer     Hugging Face Trainer, one trial after another, padded to 128 as the paper does
    compiled    the same with torch.compile
    processes   the same in --count processes at once on the GPU (--mps: under MPS)
    packed      --trials trials in one pack

The clock starts once every trial has done --warm steps, loading and compiling over, and runs for
--seconds. A pack records a step for every length of its lanes; where one comes up for the first
time after that, the recording counts as start-up all the same (``startup_s``; ``recording_s`` is
its share). ``trials_per_h`` is for a trial of --steps steps.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"135m": "smollm2_135m", "1b": "llama3_2_1b", "8b": "llama3_8b"}
PACK = {"135m": 40, "1b": 16, "8b": 6}
H100_BF16 = 989e12  # FLOP/s, dense, as the maker says
FIELDS = (
    "model", "method", "ranks", "arm", "real", "trials", "seeds", "dropout", "count", "exactness",
    "compiled", "nf4_cache",
    "startup_s", "seconds", "trial_steps", "trial_step_ms", "tokens_per_s", "trials_per_h",
    "peak_share", "allocated_gib", "reserved_gib", "joules_per_trial_step", "loss",
    "device", "torch", "error", "recording_s",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", choices=MODELS, default="135m")
    add("--arm", choices=("trainer", "compiled", "processes", "packed"), default="packed")
    add("--ranks", choices=("64", "full"), default="64", help="1…64, or 1…512")
    add("--method", choices=("lora", "qlora"), default="lora")
    add("--seconds", type=float, default=30.0, help="how long the clock runs")
    add("--warm", type=int, default=12, help="steps of every trial before that")
    add("--steps", type=int, default=625, help="steps of a trial, for trials an hour")
    add("--trials", type=int, help="trials in the pack")
    add("--count", type=int, default=4, help="processes at once")
    add("--mps", action="store_true", help="start the CUDA multi-process service for them")
    add("--exactness", choices=("fast", "strict"), default="fast")
    add("--compile", choices=("auto", "yes", "no"), default="auto", help="blocks of the pack")
    add("--nf4-cache", choices=("auto", "off"), default="auto")
    add("--real", action="store_true", help="the real 135m model, not random weights of its shape")
    add("--texts", help="a csv with the columns text and label")
    add("--seeds", type=int, default=1, help="of the pack; trials of one seed read the same texts")
    add("--dropout", type=float, default=0.05)
    add("--profile", action="store_true", help="write the costliest kernels of a few steps")
    return parser.parse_args()


# ------------------------------------------------------------------------------ what is run


def texts(folder: Path) -> Path:
    """Make up texts with about the lengths of Yelp reviews: four fifths of 128 tokens filled."""
    draw, file = random.Random(0), folder / "texts.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for row in range(8000):
            length = int(draw.lognormvariate(4.9, 0.75))
            writer.writerow(["".join(draw.choices("abcdefgh ", k=max(8, length))), row % 5])
    return file


def trials(args: argparse.Namespace, data: Path, count: int) -> list[Any]:
    """Compose ``count`` trials with ranks in turn."""
    sys.path.insert(0, str(ROOT / "src"))
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lorasweep.space import expand, grammar, schema
    from lorasweep.space.composition import Composer

    schema.register()
    ranks = [2**i for i in range(7 if args.ranks == "64" else 10)]
    drawn = [
        "model.source=random", "model.tokenizer=bytes", "model.package=null", "model.version=null",
        "model.path=null", "model.id=null", "model.revision=null",
    ]  # fmt: skip
    common = [
        f"model={MODELS[args.model]}", *([] if args.real else drawn), "model.precision=bf16",
        f"method={args.method}",
        "target=all_linear", "task=local", f"task.train_file={data}", "task.eval_fraction=0.02",
        "train.batch_size=8", "train.max_length=128", "train.order=random", "train.max_steps=2000",
        "train.learning_rate=1e-4", f"lora.dropout={args.dropout}",
        f"train.padding={'longest' if args.arm == 'packed' else 'max_length'}",
        f"engine={'packed' if args.arm == 'packed' else 'trainer'}",
        f"engine.exactness={args.exactness}", f"engine.nf4_cache={args.nf4_cache}",
    ]  # fmt: skip
    found, problems = [], []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader())
        for i in range(count):
            seed = i * args.seeds // count
            own = [f"lora.r={ranks[i % len(ranks)]}", f"seed={seed}", f"lora.alpha={i + 1}"]
            described = grammar.read([*common, *own], {}, composer, problems)
            found += expand.expand(described, composer, problems)
    if problems:
        raise SystemExit("\n".join(problems))
    return found


def quick_bases() -> None:
    """Draw random bases on the GPU: on the CPU that takes minutes for 8B."""
    import torch
    import transformers

    from lorasweep.models import convert

    def on_gpu(model: Mapping[str, Any], folder: Path) -> None:
        shape = dict(model["shape"])
        settings = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            base = transformers.AutoModel.from_config(
                settings, dtype=convert.DTYPES[model["precision"]]
            )
        base.save_pretrained(folder)
        convert.byte_tokenizer().save_pretrained(folder)
        del base
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    convert.random = on_gpu


# ------------------------------------------------------------------------------- the clock


@dataclass
class Clock:
    """Watches an engine: waits until all trials are warm, counts steps, then stops it."""

    trials: int
    warm: int
    seconds: float
    profile: Path | None = None
    stopping: bool = False
    started: float = field(default_factory=time.perf_counter)
    begun: float | None = None
    ended: float | None = None
    counted: int = 0
    energy: float = 0.0
    loss: float = float("nan")
    error: str = ""
    at: dict[str, int] = field(default_factory=dict)
    recording: float = 0.0  # seconds of recordings, all in all
    before: float = 0.0  # of these, before the clock started
    profiler: Any = None

    def step(self, trial: Any, step: int, total: int, loss: float | None) -> None:
        """Count a step, once."""
        self.loss = self.loss if loss is None else loss
        if self.at.get(trial.key) == step:
            return
        self.at[trial.key] = step
        if self.begun is None:
            if len(self.at) == self.trials and min(self.at.values()) >= self.warm:
                self._begin()
            return
        self.counted += 1
        if self.counted % self.trials == 0 and self.wall() > self.seconds:
            self._end()

    def wall(self) -> float:
        """Return the seconds since the clock started, recordings left out."""
        if self.begun is None:
            return 0.0
        return (self.ended or time.perf_counter()) - self.begun - self.recording + self.before

    def recorded(self, record: Callable[..., None]) -> Callable[..., None]:
        """Wrap what records steps of a length, to tell its seconds apart."""

        def timed(*args: Any) -> None:
            synchronise()
            started = time.perf_counter()
            record(*args)
            synchronise()
            self.recording += time.perf_counter() - started

        return timed

    def _begin(self) -> None:
        synchronise()
        if self.profile is not None:
            import torch

            self.profiler = torch.profiler.profile()
            self.profiler.__enter__()
            self.seconds = min(self.seconds, 3.0)
        self.before = self.recording
        self.energy, self.begun = joules(), time.perf_counter()

    def _end(self) -> None:
        if self.stopping:
            return
        self.stopping = True
        synchronise()
        self.ended = time.perf_counter()
        self.energy = joules() - self.energy
        if self.profiler is not None and self.profile is not None:
            self.profiler.__exit__(None, None, None)
            table = self.profiler.key_averages().table(
                sort_by="self_device_time_total", row_limit=40, max_name_column_width=90
            )
            self.profile.write_text(table)

    def report(self, trial: Any, step: int, scores: Mapping[str, float]) -> bool:
        """Nothing is pruned."""
        return False

    def end(self, trial: Any, result: Any) -> None:
        """Keep the first error."""
        if result.state != "stopped":
            self.error = self.error or f"{result.state}: {result.error}"

    def next(self) -> None:
        """Ask for no more trials."""


def synchronise() -> None:
    """Wait for the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def joules() -> float:
    """Energy that the GPU has used since it was started; 0 where it does not say."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # by its name: this process may see only some of the machine's GPUs
        name = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # whatever keeps it from saying so, the other figures stand
        return 0.0


# -------------------------------------------------------------------------------- the arms


def here(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run an arm in this process."""
    count = (args.trials or PACK[args.model]) if args.arm == "packed" else 1
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(args.texts) if args.texts else texts(Path(scratch))
        todo = trials(args, data, count)
        quick_bases()
        profile = out / f"profile_{args.model}_{args.method}_{args.arm}.txt"
        clock = Clock(count, args.warm, args.seconds, profile if args.profile else None)
        engine = made(args, clock)
        engine.run(todo, lambda trial: Path(scratch) / trial.key / "artifacts", clock)
        return row(args, clock, engine, count, todo)


def made(args: argparse.Namespace, clock: Clock) -> Any:
    """Return the engine of an arm."""
    if args.arm == "packed":
        from lorasweep.engines.packed import steps
        from lorasweep.engines.packed.engine import PackedEngine

        steps.Steps._record_all = clock.recorded(steps.Steps._record_all)
        if args.compile != "auto":
            steps.WORTH_COMPILING = 0 if args.compile == "yes" else 10**15
        return PackedEngine()
    from lorasweep.engines import trainer

    if args.arm == "compiled":
        import transformers

        compiled = partial(transformers.TrainingArguments, torch_compile=True)
        trainer.transformers.TrainingArguments = compiled
    return trainer.TrainerEngine()


def row(
    args: argparse.Namespace, clock: Clock, engine: Any, count: int, todo: Sequence[Any]
) -> dict[str, Any]:
    """Put what was measured into words."""
    import torch

    on_gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        **{n: getattr(args, n)
           for n in ("model", "method", "ranks", "arm", "exactness", "real", "seeds", "dropout")},
        "trials": count, "count": 1, "compiled": args.compile, "nf4_cache": args.nf4_cache,
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "torch": torch.__version__, "error": clock.error, "loss": clock.loss,
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else 0,
    }  # fmt: skip
    if clock.begun is None or clock.ended is None:
        return {**found, "error": clock.error or "it did not come to its measured steps"}
    wall = clock.wall()
    rate, tokens = clock.counted / wall, tokens_a_step(todo[0])
    return {
        **found,
        "startup_s": clock.ended - clock.started - wall, "recording_s": clock.recording,
        "seconds": wall,
        "trial_steps": clock.counted, "trial_step_ms": 1000 / rate,
        "tokens_per_s": rate * tokens, "trials_per_h": 3600 * rate / args.steps,
        # Forward, and backward to the inputs, of a frozen base: 2 + 2 operations a weight.
        "peak_share": rate * tokens * 4 * weights(todo[0]) / H100_BF16,
        "joules_per_trial_step": clock.energy / clock.counted,
    }  # fmt: skip


def tokens_a_step(trial: Any) -> float:
    """Tokens of a batch, padding not counted."""
    from lorasweep.models import load, source
    from lorasweep.tasks import sources
    from lorasweep.tasks import tokens as tasks

    cache = source.cache_home()
    found, task = source.locate(source.settings(trial), cache), trial.group("task")
    data = sources.load(task, cache)
    tokenizer = load.tokenizer(found.folder)
    train, _ = tasks.tokenise(
        data, task, tokenizer, found.tokenizer, trial["train.max_length"], cache
    )
    return 8 * float(sum(train["length"])) / len(train)


def weights(trial: Any) -> int:
    """Weights of the base's blocks, which every token meets."""
    shape = {n: v for n, v in trial.group("model").items() if n.startswith("shape.")}
    hidden, inner = shape["shape.hidden_size"], shape["shape.intermediate_size"]
    grouped = shape["shape.num_key_value_heads"] / shape["shape.num_attention_heads"]
    block = hidden * hidden * (2 + 2 * grouped) + 3 * hidden * inner
    return int(block * shape["shape.num_hidden_layers"])


def start_mps() -> str | None:
    """Start the CUDA multi-process service. Returns what kept it from starting."""
    try:
        made = subprocess.run(["nvidia-cuda-mps-control", "-d"], capture_output=True, text=True)
        code = "import torch; torch.zeros(1, device='cuda')"  # its server starts with a client
        client = subprocess.Popen([sys.executable, "-c", code + "; input()"], stdin=subprocess.PIPE)
        time.sleep(10)
        servers = subprocess.run(
            ["nvidia-cuda-mps-control"], input="get_server_list\n", capture_output=True, text=True
        )
        client.communicate(b"\n")
    except OSError as error:
        return f"MPS can't be started: {error}"
    if servers.stdout.strip().isdigit():
        return None
    stop_mps()
    said = (made.stderr + made.stdout + servers.stderr + servers.stdout).strip()
    return f"MPS can't be started: {said or 'its control says nothing'}"


def stop_mps() -> None:
    """Stop the CUDA multi-process service."""
    subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", check=False)


def side_by_side(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run the trainer arm in several processes at once and add up their rates."""
    if args.mps and (problem := start_mps()):
        return {"model": args.model, "arm": "processes+mps", "count": args.count, "error": problem}
    own = [tempfile.mkdtemp(dir=out) for _ in range(args.count)]
    command = [
        sys.executable, __file__, "--model", args.model, "--arm", "trainer", "--ranks", args.ranks,
        "--method", args.method, "--seconds", str(args.seconds), "--warm", str(args.warm),
        "--steps", str(args.steps), "--dropout", str(args.dropout),
        *(["--texts", args.texts] if args.texts else []), *(["--real"] if args.real else []),
    ]  # fmt: skip
    running = [subprocess.Popen(command, env={**os.environ, "OUT": place}) for place in own]
    for process in running:
        process.wait()
    if args.mps:
        stop_mps()
    rows = []
    for place in own:
        if (Path(place) / "packed.csv").exists():  # else it died, out of memory perhaps
            with (Path(place) / "packed.csv").open() as stream:
                rows += list(csv.DictReader(stream))
    first = rows[0] if rows else {"model": args.model, "error": "no process came to its end"}
    found: dict[str, Any] = {**first, "arm": "processes+mps" if args.mps else "processes"}
    found["count"], found["error"] = args.count, "; ".join(r["error"] for r in rows if r["error"])
    for name in ("trial_steps", "tokens_per_s", "trials_per_h", "peak_share", "reserved_gib"):
        found[name] = sum(float(r[name] or 0) for r in rows)
    found["trial_step_ms"] = 3.6e6 / args.steps / (found["trials_per_h"] or float("nan"))
    return found


def main() -> None:
    """Run one arm and append its row."""
    args = arguments()
    out = Path(os.environ.get("OUT", ROOT / "bench" / "results"))
    out.mkdir(parents=True, exist_ok=True)
    found = side_by_side(args, out) if args.arm == "processes" else here(args, out)
    file = out / "packed.csv"
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: found.get(name, "") for name in FIELDS})
    print({n: round(v, 4) if isinstance(v, float) else v for n, v in found.items()})


if __name__ == "__main__":
    main()
