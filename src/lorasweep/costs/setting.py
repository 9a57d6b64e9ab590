"""All of a trial that its memory and its step time depend on."""

from dataclasses import dataclass

from lorasweep.costs.shapes import Linear, Shape, adapted, shape_of
from lorasweep.trial.key import method_type
from lorasweep.trial.trial import Trial

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Setting:
    """The relevant few of a trial's settings; equal settings are computed once."""

    shape: Shape
    method: str  # module of the method: lora, full, …
    trains: str | None  # everything, adapter or None
    roles: tuple[str, ...]
    head: str
    r: int
    dropout: float
    quant: str | None
    double_quant: bool
    compute: int  # bytes of the compute type of 4-bit layers
    kbit_prepare: bool
    precision: str
    weight: int  # bytes of a weight of the base that is not quantised
    checkpointing: bool
    batch: int
    accumulation: int
    eval_batch: int
    length: int  # tokens of the longest text
    optimizer: str

    @property
    def autocast(self) -> bool:
        """Whether arithmetic runs in 16 bits over float32 adapters."""
        return self.precision != "fp32"

    @property
    def element(self) -> int:
        """Bytes of most activations."""
        return BYTES[self.precision]

    @property
    def masters(self) -> bool:
        """Whether float32 weights are trained in 16-bit arithmetic."""
        return self.trains == "everything" and self.weight > self.element

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream; float32 norms lift it to float32."""
        lifted = self.shape.family == "bert" or self.kbit_prepare or self.weight == 4
        return 4 if lifted else self.element

    @property
    def adapted(self) -> tuple[Linear, ...]:
        """Layers of one block that carry an adapter."""
        return adapted(self.shape, self.roles) if self.roles else ()


def setting_of(trial: Trial, n_labels: int) -> Setting:
    """Pick from a trial what its memory and step time depend on."""
    config = trial.config
    adapts, quant = trial.adapts, config["method.quant"]
    trains, precision = config["method.trains"], str(config["train.precision"])
    # Records that are older than the setting hold bf16 weights.
    finer = config.get("train.master_weights", "none") == "float32" or precision == "fp16"
    masters = trains == "everything" and finer
    return Setting(
        shape=shape_of(trial, n_labels),
        method=method_type(config),
        trains=None if trains is None else str(trains),
        roles=tuple(config["target.roles"]) if adapts else (),
        head=str(config["target.head"]) if adapts else "",
        r=int(config["lora.r"]) if adapts else 0,
        dropout=float(config["lora.dropout"]) if adapts else 0.0,
        quant=None if quant is None else str(quant),
        double_quant=bool(config["method.double_quant"]),
        compute=BYTES[str(config["method.compute_dtype"])],
        kbit_prepare=bool(config["method.kbit_prepare"]) and quant is not None,
        precision=precision,
        weight=4 if masters else BYTES[precision],
        checkpointing=bool(config["train.checkpointing"]),
        batch=int(config["train.batch_size"]),
        accumulation=int(config["train.accumulation"]),
        eval_batch=int(config["train.eval_batch_size"]),
        length=int(config["train.max_length"]),
        optimizer=str(config["train.optimizer"]),
    )
