"""The key of a trial: a hash of every setting that can change its result, and of no other."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from lorasweep.trial import roles

Config = Mapping[str, Any]

# Settings that change where, how fast or under which name a trial runs, never what comes out.
_NOT_IN_KEY = (
    "name",
    "output_dir",
    "resume",
    "plan",
    "device",
    "skip_unfit",
    "task.classes",
    "task.quotes",  # what is read so is in the hash of the files
    "train.eval_batch_size",
    # Names and suggestions: what they stand for is in the key.
    "model.wheel_sha256",
    "method.name",
    "target.name",
    "model.learning_rate",
)
_NOT_IN_KEY_GROUPS = ("engine", "sampler", "pruner", "executor", "tracking")
# What sweeps vary most, and what changes neither the costs of a trial nor what else it needs.
LOOSE = ("lora.alpha", "seed", "train.learning_rate")
_ADAPTER_ONLY = ("lora.", "target.")
_QUANT_ONLY = ("method.double_quant", "method.compute_dtype", "method.kbit_prepare")
_UNTRAINED = ("train.precision", "train.max_length", "train.padding")

# Settings that are younger than recorded sweeps, with the value at which they change nothing
# (off, null). There they stay out of the key, so that finished trials keep theirs. A new setting
# that can change a result gets its line here together with its default in conf/:
#     "method.dora": False,
NEUTRAL: dict[str, Any] = {
    "method.type": None,  # the one that there was: METHOD_TYPES
    "train.master_weights": "none",
    "model.precision": "fp32",  # of random weights, which are drawn in it
}

# What was trained where records have no method.type, by method.trains.
METHOD_TYPES = {"adapter": "lora", "everything": "full", None: "untrained"}

# Which trials give other numbers than an earlier release did, and why: one line a change. Their
# keys hold how many of these changes concern them, so that they run again, and no others do.
# Only ever append: a line that goes or changes gives finished trials the keys of outdated ones.
# A predicate gets all settings, flat, and reads none of LOOSE; it has to leave out trials that
# the setting does not matter to (nothing is trained where method.trains is null):
#     ("the loss is divided by the steps", lambda c: bool(c["method.trains"]) and c["..."] > 1),
NUMERICS: list[tuple[str, Callable[[Config], bool]]] = [
    (
        "an accumulated loss is the mean over the optimizer step's items",
        lambda c: bool(c["method.trains"]) and c["train.accumulation"] > 1,
    ),
    (
        "the rate of a single step is not that of a warm-up's first step, which is zero",
        lambda c: bool(c["method.trains"]) and c["train.max_steps"] == 1 and c["train.warmup"] > 0,
    ),
    (
        # Of a hub's, it is known only when it is here; keys of folders hold their content anyway.
        "a pooler that a checkpoint may lack is drawn from the seed",
        lambda c: c["model.source"] == "hub" and c.get("model.shape.model_type") == "bert",
    ),
]


# Settings that others make meaningless: name, the value that stands for it in the key, and where.
# The values are those that conf/ had when keys were first recorded, and must not follow it.
_MOOT: list[tuple[str, Any, Callable[[Config], bool]]] = [
    ("train.epochs", 1.0, lambda c: c.get("train.max_steps") is not None),
    ("train.warmup", 0.1, lambda c: c.get("train.schedule") == "constant"),
    ("train.master_weights", "none", lambda c: not _trains_bf16_weights(c)),
    ("method.type", None, lambda c: c["method.type"] == METHOD_TYPES.get(c["method.trains"])),
    ("method.double_quant", False, lambda c: c["method.quant"] == "int8"),
    ("task.eval_fraction", 0.2, lambda c: c.get("task.source") != "hub" and _apart(c)),
    ("task.eval_fraction", None, lambda c: c.get("task.source") == "hub" and _apart(c)),
    ("task.subset_seed", 0, lambda c: _apart(c) and _whole_task(c)),
    ("model.package", None, lambda c: c["model.source"] != "package"),
    ("model.version", None, lambda c: c["model.source"] != "package"),
    ("model.path", None, lambda c: c["model.source"] not in ("package", "path")),
    ("model.id", None, lambda c: c["model.source"] != "hub"),
    ("model.revision", None, lambda c: c["model.source"] != "hub"),
    ("model.tokenizer", None, lambda c: c["model.source"] != "random"),
]


def method_type(config: Config) -> str:
    """Return the module of a trial's method; records of earlier releases do not name it."""
    return str(config.get("method.type") or METHOD_TYPES[config["method.trains"]])


def _trains_bf16_weights(config: Config) -> bool:
    return config["method.trains"] == "everything" and config.get("train.precision") == "bf16"


def _apart(config: Config) -> bool:
    """Whether evaluation items are given, so that none are held out from the training items."""
    given = {"hub": "task.eval_split", "files": "task.eval_file"}
    setting = given.get(str(config.get("task.source")))
    return setting is None or config.get(setting) is not None


def _whole_task(config: Config) -> bool:
    return config.get("task.train_size") is None and config.get("task.eval_size") is None


def _roles(wanted: Iterable[str]) -> list[str]:
    """Return layer roles in their usual order, each once, as conf/target spells them."""
    spelt = {"gate?" if role == "gate" else role for role in wanted}
    places = {name: place for place, name in enumerate(roles.NAMES)}
    return sorted(spelt, key=lambda role: (places.get(role.removesuffix("?"), 99), role))


# One spelling of values that mean the same.
_CANONICAL: dict[str, Callable[[Any], Any]] = {
    "lora.alpha": lambda alpha: whole(alpha) if isinstance(alpha, float) else alpha,
    "target.roles": _roles,
}


def whole(value: float) -> float:
    """Return a number without a fraction as an integer: 16.0 → 16."""
    return int(value) if float(value).is_integer() else value


def relevant(config: Config) -> dict[str, Any]:
    """Return the settings that can change the trial's result, and no others, in sorted order.

    ``method=base lora.r=1,2,4`` is one trial, not three: rank means nothing without an adapter.
    Values that mean the same are spelt alike.
    """
    moot = _moot(config)
    return {name: _canonical(name, config[name]) for name in _relevant(config) if name not in moot}


def _canonical(name: str, value: Any) -> Any:
    return _CANONICAL[name](value) if name in _CANONICAL else value


def _moot(config: Config) -> dict[str, Any]:
    return {name: value for name, value, moot in _MOOT if name in config and moot(config)}


def numerics(config: Config) -> int:
    """Return how many releases changed the numbers of trials like this one."""
    return sum(concerned(config) for _, concerned in NUMERICS)


def _identity(config: Config) -> dict[str, Any]:
    """Return what the key is a hash of, in sorted order."""
    moot = _moot(config)
    found = {n: moot[n] if n in moot else _canonical(n, config[n]) for n in _relevant(config)}
    for name in NEUTRAL.keys() & found.keys():
        if found[name] == NEUTRAL[name]:
            del found[name]
    number = numerics(config)
    return dict(sorted({**found, "numerics": number}.items())) if number else found


def _relevant(config: Config) -> tuple[str, ...]:
    return _relevant_names(
        tuple(config),
        config["method.trains"],
        config["method.quant"] is not None,
        config["model.source"] != "random",
    )


@lru_cache(maxsize=256)  # a long sweep has few kinds of trials
def _relevant_names(
    names: tuple[str, ...], trains: str | None, quantised: bool, known_weights: bool
) -> tuple[str, ...]:
    def keep(name: str) -> bool:
        if name in _NOT_IN_KEY or name.split(".")[0] in _NOT_IN_KEY_GROUPS:
            return False
        if name.startswith(_ADAPTER_ONLY) and trains != "adapter":
            return False
        if name in _QUANT_ONLY and not quantised:
            return False
        if name.startswith("train.") and trains is None and name not in _UNTRAINED:
            return False
        if name == "model.precision" or name.startswith("model.shape."):
            return not known_weights
        # what the files hold counts, not where they lie
        if name == "model.path" and "model.sha256" in names:
            return False
        return not ("task.sha256" in names and name in ("task.train_file", "task.eval_file"))

    return tuple(sorted(filter(keep, names)))


# JSON of a kind of trials, in parts: the name of a loose setting stands for its value's text.
Form = tuple[str, ...]


def form(
    config: Config, names: Iterable[str], encode: Callable[[Any], str], comma: str, colon: str
) -> Form:
    """Return the form of these settings as a JSON object."""
    parts, lead = [""], "{"
    for name in names:
        parts[-1] += lead + encode(name) + colon
        if name in LOOSE:
            parts += [name, ""]
        else:
            parts[-1] += encode(config[name])
        lead = comma
    parts[-1] += "}"
    return tuple(parts)


def filled(form: Form, config: Config) -> str:
    """Put the loose settings of a trial into the form of its kind."""
    return "".join([_text(config[part]) if part in LOOSE else part for part in form])


def _text(value: Any) -> str:
    return _text_of_number(value) if isinstance(value, int | float) else _encode(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_text_of_number = lru_cache(maxsize=4096, typed=True)(_encode)  # 1, 1.0 and True are equal


def key_of(config: Config) -> str:
    """Hash of all that can change the trial's result: 12 hexadecimal digits of SHA-256."""
    return hashed(_encode(_identity(config)))


def key_form(config: Config) -> Form:
    """Return the form of what is hashed, the same for all trials of a kind."""
    identity = _identity(config)
    return form(identity, identity, _encode, ",", ":")


def hashed(text: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
