"""Export formats: one row for each format, and one for each GGUF type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swift_toolkit.machine import packages
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Args:
        name: its name for ``--export``.
        what: a description for the user.
        suffix: added to the checkpoint's name to name the directory.
        bits: bits per weight, including scales; 0 if the checkpoint or ``--gguf-type`` decides.
        threshold: key of its row in the table of thresholds; "" if ``--gguf-type`` decides.
        modules: modules that must be installed.
        cuda: whether it needs an NVIDIA GPU.
        calibrated: whether ``--calibration`` is required.
        quantised: whether ms-swift's own export makes it.
        gguf: whether it contains a GGUF file.
    """

    name: str
    what: str
    suffix: str
    bits: float = 0
    threshold: str = ""
    modules: tuple[str, ...] = ()
    cuda: bool = False
    calibrated: bool = False
    quantised: bool = False
    gguf: bool = False

    def needs(self, device: Device) -> Iterator[Problem]:
        """Yield the requirements that this machine does not meet."""
        for module in packages.not_installed(self.modules):
            what = f'is "{self.name}", which needs {packages.distribution(module)}'
            yield Problem(what, packages.install(module), "--export")
        if self.cuda and device.kind != "cuda":
            yield Problem(
                f'is "{self.name}", which needs an NVIDIA GPU', "Export on a machine with one.", "--export"
            )


EXPORTS = {
    one.name: one
    for one in (
        Format(name="merged", what="the adapter merged into its base", suffix="merged", threshold="whole"),
        Format(name="gguf", what="a GGUF file for llama.cpp and LM Studio", suffix="gguf", gguf=True),
        Format(name="ollama", what="a GGUF file and a Modelfile for Ollama", suffix="ollama", gguf=True),
        Format(
            name="awq", what="4 bits (AWQ)", suffix="awq", bits=4.25, threshold="4 bits",
            modules=("awq",), cuda=True, calibrated=True, quantised=True,
        ),
        Format(
            name="gptq", what="4 or 8 bits (GPTQ)", suffix="gptq", bits=4.25, threshold="4 bits",
            modules=("gptqmodel", "optimum"), cuda=True, calibrated=True, quantised=True,
        ),
        Format(
            name="bnb", what="4 or 8 bits (bitsandbytes)", suffix="bnb", bits=4.5, threshold="4 bits",
            modules=("bitsandbytes",), quantised=True,
        ),
        Format(
            name="fp8", what="8 bits (fp8)", suffix="fp8", bits=8, threshold="8 bits",
            cuda=True, quantised=True,
        ),
        Format(
            name="hub", what="the merged model, uploaded to a hub", suffix="merged", threshold="whole",
        ),
    )
}  # fmt: skip
"""Every format by its name."""


@dataclass(frozen=True)
class GgufType:
    """A type in which a GGUF file stores its weights.

    Args:
        converted: type that llama.cpp's converter writes; k-quants are made from a 16-bit file.
        bits: bits per weight, including scales (llama.cpp, ``ggml-common.h``).
        threshold: key of its row in the table of thresholds.
        ftype: its number in llama.cpp's quantiser (``llama.h``, enum llama_ftype); 0 for types that the converter
            writes itself.
    """

    converted: str
    bits: float
    threshold: str
    ftype: int = 0


GGUF_TYPES = {
    "f16": GgufType("f16", 16, "f16"),
    "bf16": GgufType("bf16", 16, "bf16"),
    "q8_0": GgufType("q8_0", 8.5, "q8_0"),
    "q6_k": GgufType("bf16", 6.56, "6 bits", 18),
    "q5_k_m": GgufType("bf16", 5.69, "6 bits", 17),
    "q4_k_m": GgufType("bf16", 4.85, "4 bits", 15),
}
"""Every GGUF type by its name."""
