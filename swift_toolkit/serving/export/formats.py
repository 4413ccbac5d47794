"""What can be made of a checkpoint: one row for each format and for each type of the numbers in a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swift_toolkit.machine import packages
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of an exported model.

    Args:
        name: what ``--export`` calls it.
        what: the same for a reader.
        suffix: what its directory's name ends with, after the checkpoint's.
        bits: of a weight, scales included; 0 where the checkpoint or ``--gguf-type`` decides.
        threshold: the key of its row in the table of thresholds; "" where ``--gguf-type`` decides.
        modules: what must be installed.
        cuda: whether it needs a GPU.
        calibrated: whether ``--calibration`` is needed.
        quantised: whether ms-swift's own export makes it.
        gguf: whether it holds a GGUF file.
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
        """What is missing on this machine."""
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
    """How a GGUF file stores its weights.

    Args:
        converted: what llama.cpp's converter writes it as; a k-quant is made of a 16-bit file.
        bits: of a weight, scales included (llama.cpp, ``ggml-common.h``).
        threshold: the key of its row in the table of thresholds.
        ftype: the number that llama.cpp's quantiser knows it by (``llama.h``, enum llama_ftype); 0 for the converter's
            own types.
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
"""Every type of a GGUF file by its name."""
