"""Options composed apart and put together: the same as composing all of them at once."""

import itertools
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from lorasweep.space.composition import Composer

CHOICES = {
    "model": ["minilm", "tiny_llama", "roberta_base"],
    "method": ["lora", "qlora", "base"],
    "target": ["attention", "all_linear"],
}


def same_as_at_once(composer: Composer, fixed: list[str], choices: dict[str, list[str]]) -> None:
    at_once = Composer(composer.loader)
    composer.foresee(fixed, choices)
    for options in itertools.product(*choices.values()):
        found = composer.choose(fixed, dict(zip(choices, options, strict=True)))
        words = [f"{g}={o}" for g, o in zip(choices, options, strict=True)]
        whole = at_once([*fixed, *words])
        assert (found.flat, found.parts) == (whole.flat, whole.parts)
        assert found.referenced == whole.referenced


def test_as_many_compositions_as_the_longest_list_has(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, fixed = Composer(composer.loader), ["model.precision=bf16", "seed=3"]
    composed: list[list[str]] = []
    compose = Composer._compose

    def counted(self: Composer, overrides: list[str]) -> object:
        if self is made:
            composed.append(overrides)
        return compose(self, overrides)

    monkeypatch.setattr(Composer, "_compose", counted)
    same_as_at_once(made, fixed, CHOICES)
    assert len(composed) == 1 + 2  # what is fixed, and two options that are no default


def test_an_option_that_speaks_for_others_is_composed_with_them(tmp_path: Path) -> None:
    files = {
        "config": "defaults: [a: one, b: one, c: one, _self_]\ns: ${a.v}",
        "a/one": "v: 1",
        "a/two": "v: 2",
        "b/one": "v: 1",
        "b/two": "# @package _global_\nb: {v: 2}\na: {v: 3}",
        "c/one": "v: 1",
        "c/two": "v: 2",
        "c/three": "v: ${b.v}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    composer = Composer(ConfigLoaderImpl(create_config_search_path(str(tmp_path))))
    choices = {"a": ["one", "two"], "b": ["one", "two"], "c": ["one", "two", "three"]}
    same_as_at_once(composer, [], choices)
    assert composer.choose([], {"a": "two", "b": "two"}).flat["a.v"] == 3
