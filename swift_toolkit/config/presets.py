"""The presets: which defaults each one brings, and what it does not go together with.

A preset says what ms-swift would not decide the same way by itself, or what the user should see decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swift_toolkit.config.settings import Config, Setting, Source
from swift_toolkit.config.values import not_one_of
from swift_toolkit.problems import Problem


@dataclass(frozen=True)
class Preset:
    """One preset.

    Args:
        says: what it is for, in a phrase.
        tuners: the tuners it goes with, its own default first.
        defaults: values it brings for what the user left open; names as ms-swift 4 has them.
        refuses: argument names, or beginnings of names ending in ``*``, that do not go with it.
        because: the reason, completing ``cannot be used with preset "full", which ...``.
    """

    says: str
    tuners: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    because: str = ""


ADAPTER_RATE, FULL_RATE = 1e-4, 1e-5
"""Learning rates for adapters and for all weights, ms-swift's own defaults (``SftArguments.learning_rate``)."""

_QUANTISATION = ("quant_method", "quant_bits", "bnb_*", "hqq_*")
_ADAPTER = (
    *("lora_*", "target_modules", "target_regex", "target_parameters", "modules_to_save"),
    *("use_rslora", "use_dora", "lorap_lr_ratio", "init_weights"),
)
_MULTIMODAL = ("freeze_vit", "freeze_aligner", "freeze_llm", "vit_lr", "aligner_lr")

PRESETS: dict[str, Preset] = {
    "lora": Preset(
        says="LoRA: small adapters beside frozen weights",
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
        says="multimodal: a vision-language or audio model, its encoder frozen unless told otherwise",
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


def apply(config: Config, chosen: Setting | None, problems: list[Problem]) -> None:
    """Choose the preset of ``config``, lay its defaults under the user's settings and check what it refuses.

    Args:
        config: its ``settings`` are what the user gave, None included, the tuner still ``qlora`` where asked.
        chosen: the ``preset`` key, None if not given.
        problems: what is wrong is added here.
    """
    chosen = _settled(config, chosen, problems)
    name = _name(config, chosen, problems)
    _name_the_tuner(config)
    if name is None:
        return
    config.preset = name
    preset = PRESETS[name]
    problems += _refused(config, name, preset)
    _lay_under(config, name, preset)


def _settled(config: Config, chosen: Setting | None, problems: list[Problem]) -> Setting | None:
    """The ``preset`` key, or None where the tuner decides. Of two that do not agree, the one on the command line wins
    over the one in the file; the other is dropped."""
    tuner = config.settings.get(config.tuner_name)
    if chosen is None or tuner is None or chosen.value not in PRESETS:
        return chosen
    takes = PRESETS[chosen.value].tuners
    if tuner.value in (None, chosen.value, *takes):
        return chosen
    if tuner.source.kind != chosen.source.kind and chosen.source.kind == "file":
        return None
    if tuner.source.kind != chosen.source.kind and tuner.source.kind == "file":
        del config.settings[config.tuner_name]
        return chosen
    kinds = " or ".join(f'"{kind}"' for kind in takes)
    what = f'is {json.dumps(tuner.value)}, but preset "{chosen.value}" takes {kinds}'
    problems.append(tuner.problem(what, "Change one of the two."))
    return chosen


def _name_the_tuner(config: Config) -> None:
    """Put LoRA in the place of a preset that was named as the tuner, and say so."""
    tuner = config.settings.get(config.tuner_name)
    if tuner is None or tuner.value not in PRESETS_OF_LORA:
        return
    config.settings[config.tuner_name] = replace(tuner, value="lora")
    brings = f'preset "{tuner.value}"'
    if tuner.value == "qlora":
        brings = f'quant_method "bnb", quant_bits {config.get("quant_bits", 4)}'
    config.notices.append(f'{tuner.written} "{tuner.value}" → {config.tuner_name} "lora", {brings}')


def _name(config: Config, chosen: Setting | None, problems: list[Problem]) -> str | None:
    if chosen is not None and chosen.value is not None:
        if chosen.value in PRESETS:
            return str(chosen.value)
        problems.append(chosen.problem(*not_one_of(chosen.value, PRESETS)))
        return None
    tuner = config.get(config.tuner_name) or "lora"
    if any(config.get(name) is not None for name in _MULTIMODAL) and tuner in PRESETS["multimodal"].tuners:
        return "multimodal"
    if tuner == "lora" and _is_bnb(config):
        return "qlora"
    return tuner if tuner in PRESETS else None


def _is_bnb(config: Config) -> bool:
    bits, method = config.get("quant_bits"), config.get("quant_method")
    return method == "bnb" or (method is None and str(bits) in ("4", "8"))


def _refused(config: Config, name: str, preset: Preset) -> Iterable[Problem]:
    for setting_name, setting in config.settings.items():
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


def _lay_under(config: Config, name: str, preset: Preset) -> None:
    tuner = config.get(config.tuner_name) or preset.tuners[0]
    rate = FULL_RATE if tuner == "full" else ADAPTER_RATE
    defaults = {config.tuner_name: preset.tuners[0], **preset.defaults, "learning_rate": rate}
    for setting_name, value in defaults.items():
        if setting_name not in config.settings:
            config.settings[setting_name] = Setting(value, Source("preset", name), setting_name)


PRESETS_OF_LORA = ("qlora", "multimodal")
"""What may be said in the tuner's place and is no tuner but a preset, which begins with LoRA."""
