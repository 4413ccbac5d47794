"""The presets: their defaults, and the settings they cannot be combined with.

A preset contains what ms-swift would decide differently, or what the user should see explicitly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swift_toolkit.config.settings import Setting, Source
from swift_toolkit.config.values import not_one_of
from swift_toolkit.problems import Problem


@dataclass(frozen=True)
class Preset:
    """One preset.

    Args:
        says: its purpose, in a phrase.
        tuners: the tuners it supports, its default first.
        defaults: values for settings that the user did not set; names as in ms-swift 4.
        refuses: argument names, or prefixes of names followed by ``*``, that it cannot be combined with.
        because: the reason, which completes ``cannot be used with preset "full", which ...``.
    """

    says: str
    tuners: tuple[str, ...]
    defaults: Mapping[str, object] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    because: str = ""


ADAPTER_RATE, FULL_RATE = 1e-4, 1e-5
"""Learning rates for adapters and for full training, ms-swift's own defaults (``SftArguments.learning_rate``)."""

_QUANTISATION = ("quant_method", "quant_bits", "bnb_*", "hqq_*")
_ADAPTER = tuple(
    """lora_* target_modules target_regex target_parameters modules_to_save use_rslora use_dora lorap_lr_ratio
    init_weights""".split()
)
_MULTIMODAL = ("freeze_vit", "freeze_aligner", "freeze_llm", "vit_lr", "aligner_lr")

PRESETS: dict[str, Preset] = {
    "lora": Preset(
        says="LoRA: small adapters on frozen weights",
        tuners=("lora",),
        refuses=_MULTIMODAL,
        because='trains text models; preset "multimodal" takes it',
    ),
    "qlora": Preset(
        says="QLoRA: LoRA on weights quantised to 4 or 8 bits by bitsandbytes",
        tuners=("lora",),
        defaults={"quant_method": "bnb", "quant_bits": 4},
        refuses=_MULTIMODAL,
        because='trains text models; preset "multimodal" takes it',
    ),
    "full": Preset(
        says="full: every weight is trained",
        tuners=("full",),
        refuses=(*_ADAPTER, *_QUANTISATION, *_MULTIMODAL),
        because="trains every unquantised weight and no adapter",
    ),
    "multimodal": Preset(
        says='multimodal: a vision-language or audio model, its encoder frozen unless "freeze_vit" is false',
        tuners=("lora", "full"),
        defaults={"freeze_vit": True, "freeze_aligner": True, "freeze_llm": False},
    ),
}
_FULL_REFUSALS = {
    **dict.fromkeys(
        _QUANTISATION, ("trains unquantised weights", 'Remove it, or set "train_type" to "qlora".')
    ),
    **dict.fromkeys(_ADAPTER, ("trains no adapter", 'Remove it, or set "train_type" to "lora".')),
}


@dataclass(frozen=True)
class Choice:
    """The preset in use and its results.

    Args:
        preset: its name, None if the tuner has none or the name is unknown.
        settings: the user's settings, completed with the preset's defaults.
        notices: one line for each translation.
        problems: what is wrong.
    """

    preset: str | None
    settings: dict[str, Setting]
    notices: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def choose(settings: Mapping[str, Setting], chosen: Setting | None, tuner_name: str) -> Choice:
    """Choose the preset of a request, add its defaults to the settings and check what it refuses.

    Args:
        settings: what the user gave, including None values and the tuner ``qlora``.
        chosen: the ``preset`` key, None if not given.
        tuner_name: the installed ms-swift's name for the argument that chooses the tuner.
    """
    given = _Given(dict(settings), tuner_name)
    conflict = _conflict(given, chosen)
    if conflict == "preset":
        chosen = None
    elif conflict == "tuner":
        del given.settings[tuner_name]
    problems = [*_conflict_problems(given, chosen)] if conflict == "both" else []
    if chosen is not None and chosen.value is not None and not _is_preset(chosen.value):
        problems.append(chosen.problem(*not_one_of(chosen.value, PRESETS)))
        name = None
    else:
        name = str(chosen.value) if chosen is not None and chosen.value is not None else _named(given)
    notices = _tuner_notice(given)
    tuner = given.settings.get(tuner_name)
    if notices and tuner is not None:
        given.settings[tuner_name] = replace(tuner, value="lora")
    if name is None:
        return Choice(None, given.settings, notices, tuple(problems))
    problems += _refused(given.settings, name, PRESETS[name])
    under = {key: setting for key, setting in _defaults(given, name).items() if key not in given.settings}
    return Choice(name, given.settings | under, notices, tuple(problems))


@dataclass(frozen=True)
class _Given:
    """What the user gave."""

    settings: dict[str, Setting]
    tuner_name: str

    def get(self, name: str) -> Any:
        return self.settings[name].value if name in self.settings else None

    @property
    def tuner(self) -> Any:
        return self.get(self.tuner_name)


def _is_preset(value: Any) -> bool:
    return isinstance(value, str) and value in PRESETS


def _conflict(given: _Given, chosen: Setting | None) -> str:
    """Which of preset and tuner is overridden if they conflict: the command line overrides the file; "both" if they
    were given in the same place, "" if they do not conflict."""
    tuner = given.settings.get(given.tuner_name)
    if chosen is None or tuner is None or not _is_preset(chosen.value):
        return ""
    if tuner.value in (None, chosen.value, *PRESETS[chosen.value].tuners):
        return ""
    if tuner.source.kind == chosen.source.kind or "file" not in (tuner.source.kind, chosen.source.kind):
        return "both"
    return "preset" if chosen.source.kind == "file" else "tuner"


def _conflict_problems(given: _Given, chosen: Setting | None) -> Iterator[Problem]:
    tuner = given.settings[given.tuner_name]
    preset = chosen.value if chosen else ""
    kinds = " or ".join(f'"{kind}"' for kind in PRESETS[preset].tuners)
    what = f'is {json.dumps(tuner.value)}, but preset "{preset}" takes {kinds}'
    yield tuner.problem(what, "Change one of the two.")


def _tuner_notice(given: _Given) -> tuple[str, ...]:
    """The notice for a preset that was given as the tuner, which then is LoRA."""
    if given.tuner not in PRESETS_OF_LORA:
        return ()
    written = given.settings[given.tuner_name].written
    brings = f'preset "{given.tuner}"'
    if given.tuner == "qlora":
        brings = f'quant_method "bnb", quant_bits {given.get("quant_bits") or 4}'
    return (f'{written} "{given.tuner}" → {given.tuner_name} "lora", {brings}',)


def _named(given: _Given) -> str | None:
    """The preset that follows from the tuner and the other settings."""
    tuner = given.tuner or "lora"
    if tuner in PRESETS_OF_LORA:
        return str(tuner)
    is_multimodal = any(given.get(name) is not None for name in _MULTIMODAL)
    if is_multimodal and tuner in PRESETS["multimodal"].tuners:
        return "multimodal"
    if tuner == "lora" and _is_bnb(given):
        return "qlora"
    return str(tuner) if _is_preset(tuner) else None


def _is_bnb(given: _Given) -> bool:
    bits, method = given.get("quant_bits"), given.get("quant_method")
    return method == "bnb" or (method is None and str(bits) in ("4", "8"))


def _refused(settings: Mapping[str, Setting], name: str, preset: Preset) -> Iterator[Problem]:
    for setting_name, setting in settings.items():
        pattern = _matching(setting_name, preset.refuses)
        if pattern is None or setting.value is None:
            continue
        why, do = preset.because, "Remove it, or choose another preset."
        if name == "full":
            why, do = _FULL_REFUSALS.get(pattern, (PRESETS["lora"].because, do))
        yield setting.problem(f'cannot be used with preset "{name}", which {why}', do)


def _matching(name: str, patterns: Iterable[str]) -> str | None:
    for pattern in patterns:
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return pattern
    return None


def _defaults(given: _Given, name: str) -> dict[str, Setting]:
    """The settings that the preset adds."""
    preset = PRESETS[name]
    tuner = given.tuner or preset.tuners[0]
    rate = FULL_RATE if tuner == "full" else ADAPTER_RATE
    defaults = {given.tuner_name: preset.tuners[0], **preset.defaults, "learning_rate": rate}
    return {key: Setting(value, Source("preset", name), key) for key, value in defaults.items()}


PRESETS_OF_LORA = ("qlora", "multimodal")
"""Values of the tuner setting that name a preset instead; these presets use LoRA."""
