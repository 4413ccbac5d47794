"""The sides of the comparison, each with its own way to tokenise a prompt, answer, and compute distributions.

Imported by the worker; torch, transformers, ms-swift and llama.cpp are imported when a side is created.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_toolkit.machine import packages
from swift_toolkit.machine.msswift import inference_api
from swift_toolkit.model.checkpoints.old_adapter import with_peft_adapters
from swift_toolkit.model.files import read_json
from swift_toolkit.model.gguf_reader import read_once
from swift_toolkit.serving.proof import chat_template
from swift_toolkit.serving.proof.exchange import (
    POSITIONS,
    ChatFormat,
    Deviation,
    Messages,
    ProofOrder,
    ProofSide,
    Response,
    end_ids,
    shared_length,
)
from swift_toolkit.serving.proof.weights import weight_faults


class Reader(ABC):
    """A loaded side."""

    def __init__(self, order: ProofOrder) -> None:
        self.order = order

    @abstractmethod
    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """Render a conversation; return the prompt as text and tokens."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Tokenise a text without a template."""

    @abstractmethod
    def text(self, tokens: Sequence[int]) -> str:
        """Decode tokens."""

    @abstractmethod
    def answer(self, prompt: Sequence[int], guess: Sequence[int] = ()) -> list[int]:
        """Generate the greedy answer, including the end token. As far as a guess is right, it need not be generated."""

    @abstractmethod
    def log_probabilities(self, tokens: Sequence[int], first: int) -> Any:
        """Log probabilities of the next token after each of ``tokens`` from index ``first`` on.

        Returns:
            A float32 tensor of shape (len(tokens) - first, vocabulary).
        """

    @abstractmethod
    def knows(self, tokens: Sequence[int]) -> bool:
        """Whether the model has an embedding for each of the tokens."""

    @abstractmethod
    def facts(self) -> ProofSide:
        """The properties of the model, without any answers."""

    def distribution(self, index: int) -> Path:
        """The file with the original's distributions for a question."""
        return Path(self.order.folder) / f"{index}.npy"

    def side(self) -> ProofSide:
        """Ask all questions."""
        facts = self.facts()
        asked = tuple(self._asked(index, one, facts) for index, one in enumerate(self.order.questions))
        return replace(facts, asked=asked)

    def _asked(self, index: int, messages: Messages, facts: ProofSide) -> Response:
        prompt, ids = self.prompt(messages)
        told = self.order.original
        guess = told.asked[index].answer_ids if told is not None else ()
        whole = self.answer(ids, guess) if ids and self.knows(ids) else []
        ended = bool(whole) and whole[-1] in facts.stop_ids
        answer = whole[:-1] if ended else whole
        kl, gap = self._compared(index, answer)
        return Response(
            prompt=prompt,
            prompt_ids=tuple(ids),
            plain_ids=tuple(self.tokens(messages[-1]["content"])),
            answer=self.text(answer),
            answer_ids=tuple(answer),
            ended=ended,
            kl=kl,
            gap=gap,
        )

    def _compared(self, index: int, answer: Sequence[int]) -> tuple[tuple[float, ...], float | None]:
        """KL divergence from the original on the original's own tokens, and the gap where the answers diverge."""
        import numpy
        import torch

        if self.order.original is None:
            return (), None
        told = self.order.original.asked[index]
        tokens = [*told.prompt_ids, *told.answer_ids[: POSITIONS - 1]]
        if not self.knows(tokens):
            return (), None
        mine = self.log_probabilities(tokens, len(told.prompt_ids) - 1)
        theirs = torch.from_numpy(numpy.load(self.distribution(index)))
        known = min(mine.shape[-1], theirs.shape[-1])  # one may have padding rows that no token uses
        share, mine = theirs[:, :known], mine[:, :known]
        divergence = share.exp() * (share - mine)
        kl = divergence.sum(-1).clamp(min=0)
        return tuple(kl.tolist()), _gap(theirs, told.answer_ids, answer)


def _gap(theirs: Any, told: Sequence[int], answer: Sequence[int]) -> float | None:
    """How much more likely the original's token was than the other's where two answers diverge, in nats."""
    position = shared_length(told, answer)
    if position >= min(len(told), len(answer), theirs.shape[0]) or answer[position] >= theirs.shape[1]:
        return None
    return float(theirs[position, told[position]] - theirs[position, answer[position]])


class _Torch(Reader):
    """A torch model in this process."""

    model: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]

    def tokens(self, text: str) -> list[int]:
        """Use the tokenizer of the model."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: Sequence[int]) -> str:
        """Use the tokenizer of the model."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def answer(self, prompt: Sequence[int], guess: Sequence[int] = ()) -> list[int]:
        """Generate with transformers, without the model's own sampling settings (temperature, penalties)."""
        right = self._right(prompt, guess)
        rest = self.order.max_tokens - len(right)
        return right + (self._generated([*prompt, *right], rest) if rest > 0 else [])

    def _right(self, prompt: Sequence[int], guess: Sequence[int]) -> list[int]:
        """The beginning of ``guess`` that greedy decoding would generate, found in one forward pass."""
        if not guess or not self.knows(guess):
            return []
        best = self.log_probabilities([*prompt, *guess[:-1]], len(prompt) - 1).argmax(-1).tolist()
        count = shared_length(best, guess)
        ends = [place for place, token in enumerate(best[:count]) if token in self.stop_ids]
        return list(guess[: ends[0] if ends else count])

    def _generated(self, prompt: Sequence[int], most: int) -> list[int]:
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([list(prompt)], device=self.model.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=list(self.stop_ids) or None,
            pad_token_id=self.stop_ids[0] if self.stop_ids else 0,
        )
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return [int(one) for one in out[0, ids.shape[1] :]]

    def log_probabilities(self, tokens: Sequence[int], first: int) -> Any:
        """Compute all of them in one forward pass."""
        import torch

        ids = torch.tensor([list(tokens)], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return torch.log_softmax(logits[0, first:].float(), -1).cpu()

    def knows(self, tokens: Sequence[int]) -> bool:
        """Check the size of the embeddings."""
        return max(tokens) < int(self.model.get_input_embeddings().weight.shape[0])

    def _facts(self, stop_ids: Sequence[int], **more: Any) -> ProofSide:
        added = {token: int(number) for token, number in self.tokenizer.get_added_vocab().items()}
        return ProofSide(
            asked=(), vocabulary=len(self.tokenizer), added=added, stop_ids=tuple(stop_ids), **more
        )


class Original(_Torch):
    """The checkpoint as it was trained, loaded by ms-swift."""

    def __init__(self, order: ProofOrder) -> None:
        super().__init__(order)
        engine = inference_api().SwiftInfer(with_peft_adapters(list(order.arguments))).infer_engine
        self.template = engine.template if hasattr(engine, "template") else engine.default_template
        self.model, self.tokenizer = engine.model, self.template.tokenizer
        self.request = inference_api().InferRequest
        self.stop_ids = tuple(self._stop_ids())

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """Render with ms-swift's own template."""
        ids = list(self.template.encode(self.request(messages=messages))["input_ids"])
        return self.text(ids), ids

    def side(self) -> ProofSide:
        """Ask all questions; also store the distributions for the other side and compute the margins."""
        side = super().side()
        asked = tuple(self._kept(index, one) for index, one in enumerate(side.asked))
        return replace(side, asked=asked)

    def _kept(self, index: int, one: Response) -> Response:
        import numpy

        tokens = [*one.prompt_ids, *one.answer_ids[: POSITIONS - 1]]
        kept = self.log_probabilities(tokens, len(one.prompt_ids) - 1)
        numpy.save(self.distribution(index), kept.numpy())
        best = kept.topk(2).values
        ends = (len(self.text(one.answer_ids[: count + 1])) for count in range(len(one.answer_ids)))
        margins = (best[:, 0] - best[:, 1]).tolist()
        return replace(one, margins=tuple(margins), offsets=tuple(ends))

    def facts(self) -> ProofSide:
        """The properties of the model, including the end token used in training and the chat format."""
        meta = self.template.template_meta
        end = getattr(meta, "stop_token_id", None)
        known = None if end is None else (str(self.text([end])), int(end))
        return self._facts(self.stop_ids, end=known, chat=self._chat())

    def _stop_ids(self) -> Iterator[int]:
        """The stop words of the template that are a single token; ms-swift's engine uses these."""
        for word in dict.fromkeys(map(str, self._stop_words())):
            ids = self.tokens(word)
            if len(ids) == 1:
                yield ids[0]

    def _stop_words(self) -> Iterator[str]:
        for word in self.template.template_meta.stop_words:
            if word is not None:
                yield word if isinstance(word, str) else self.text(word)

    def _chat(self) -> ChatFormat:
        meta = self.template.template_meta
        chat = ChatFormat(
            prefix=self._joined(meta.prefix),
            system_prefix=None if meta.system_prefix is None else self._joined(meta.system_prefix),
            prompt=self._joined(meta.prompt),
            chat_sep=None if meta.chat_sep is None else self._joined(meta.chat_sep),
            suffix=self._joined(meta.suffix),
            system=meta.default_system or "",
            stop=tuple(dict.fromkeys(self._stop_words())),
        )
        own = self.tokenizer.chat_template
        wanted = [(one, self.prompt(one)[1]) for one in chat_template.probes(self.order.questions)]
        if own and self._renders(own, wanted):
            return chat
        fitting = (one for one in chat_template.candidates(chat, own) if self._renders(one, wanted))
        return replace(chat, tokenizer_template=False, jinja=next(fitting, ""))

    def _joined(self, parts: Sequence[Any]) -> str:
        """A part of a format as text; ms-swift mixes texts and lists of tokens."""
        return "".join(one if isinstance(one, str) else self.text(one) for one in parts if one)

    def _renders(self, template: str, wanted: Sequence[tuple[Messages, list[int]]]) -> bool:
        try:
            return all(
                self.tokens(_render(self.tokenizer, messages, template)) == ids for messages, ids in wanted
            )
        except Exception:  # a template that raises anything does not match
            return False


def _render(tokenizer: Any, messages: Messages, template: str | None = None) -> str:
    kwargs = {} if template is None else {"chat_template": template}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs))


class Transformers(_Torch):
    """A model directory or GGUF file, loaded by transformers alone."""

    def __init__(self, order: ProofOrder) -> None:
        import transformers

        super().__init__(order)
        path = Path(order.path)
        gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        folder = str(path.parent if gguf else path)
        self.config, _ = read_json(Path(folder) / "config.json") if not gguf else (None, None)
        names = str((self.config or {}).get("architectures"))
        sees = "ForConditionalGeneration" in names
        loader = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        with read_once() if gguf else nullcontext():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **gguf)
            self.model = loader.from_pretrained(folder, **gguf, **self._placing()).eval()
        self.stop_ids = tuple(self._stop_ids())

    def _placing(self) -> dict[str, str]:
        quantised = "quantization_config" in (self.config or {})
        if self.order.device != "cpu":
            return {"device_map": self.order.device, "dtype": "auto"}
        return {} if quantised else {"dtype": "float32"}

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """Render with the artefact's own chat template; an empty prompt if it has none."""
        if not self.tokenizer.chat_template:
            return "", []
        text = _render(self.tokenizer, messages)
        return text, self.tokens(text)

    def facts(self) -> ProofSide:
        """The properties of the model, including problems with its weights if it was merged."""
        faults: tuple[Deviation, ...] = ()
        if self.order.adapter and self.order.base:
            faults = tuple(weight_faults(*map(Path, (self.order.path, self.order.base, self.order.adapter))))
        dtype = str((self.config or {}).get("dtype") or (self.config or {}).get("torch_dtype") or "")
        return self._facts(self.stop_ids, dtype=dtype, faults=faults)

    def _stop_ids(self) -> list[int]:
        """The stop tokens without ms-swift: those of the generation config and the tokenizer."""
        told = end_ids(self.model.generation_config.eos_token_id)
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*told, *([own] if own is not None else [])]))


class LlamaCpp(Reader):
    """A GGUF file, read by llama.cpp itself."""

    module = "llama_cpp_py_sync"

    def __init__(self, order: ProofOrder) -> None:
        from gguf import GGUFReader
        from llama_cpp_py_sync import Llama

        super().__init__(order)
        fields = GGUFReader(order.path).fields
        self._fields = {name: fields[name].contents() for name in _GGUF_FIELDS if name in fields}
        self.llama = Llama(order.path, n_ctx=2048, n_batch=2048, n_ubatch=2048)

    @classmethod
    def is_installed(cls) -> bool:
        """Whether its package is installed."""
        return packages.is_installed(cls.module)

    def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """Render with the chat template in the file, as llama.cpp's server does with --jinja."""
        template = self._fields.get("tokenizer.chat_template")
        if not template:
            return "", []
        text = self._rendered(template, messages)
        return text, self.tokens(text)

    def _rendered(self, template: str, messages: Messages) -> str:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        tokens = self._fields["tokenizer.ggml.tokens"]
        names = {
            f"{name}_token": tokens[number]
            for name in ("bos", "eos")
            if (number := self._fields.get(f"tokenizer.ggml.{name}_token_id")) is not None
        }
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **names
        )

    def tokens(self, text: str) -> list[int]:
        """Tokenise with special tokens recognised, as for a rendered prompt."""
        return list(self.llama.tokenize(text, add_special=False, parse_special=True)) if text else []

    def text(self, tokens: Sequence[int]) -> str:
        """Decode tokens, including special tokens."""
        return str(self.llama.detokenize(list(tokens)))

    def answer(self, prompt: Sequence[int], guess: Sequence[int] = ()) -> list[int]:
        """Generate token by token, each time the most likely one."""
        ends = set(self._stop_ids())
        answer: list[int] = []
        logits = self._logits(prompt, len(prompt) - 1)
        while len(answer) < self.order.max_tokens:
            answer.append(int(logits[-1].argmax()))
            if answer[-1] in ends:
                break
            logits = self._logits([answer[-1]], 0, len(prompt) + len(answer) - 1)
        return answer

    def log_probabilities(self, tokens: Sequence[int], first: int) -> Any:
        """Compute all of them in one forward pass."""
        import torch

        return torch.log_softmax(torch.from_numpy(self._logits(tokens, first)), -1)

    def _logits(self, tokens: Sequence[int], first: int, past: int = 0) -> Any:
        """Logits after each of ``tokens`` from ``first`` on; ``past`` tokens are already in the cache."""
        import numpy

        lib, ffi, context = self.llama._lib, self.llama._ffi, self.llama._ctx
        if past == 0:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, past + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= first
        status = lib.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp could not evaluate the prompt (status {status})")
        size = self.llama.n_vocab
        rows = [
            numpy.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, place), 4 * size), "float32").copy()
            for place in range(first, len(tokens))
        ]
        lib.llama_batch_free(batch)
        return numpy.stack(rows)

    def knows(self, tokens: Sequence[int]) -> bool:
        """Check the vocabulary in the header of the file."""
        return max(tokens) < int(self.llama.n_vocab)

    def facts(self) -> ProofSide:
        """The properties stated in the header of the file."""
        tokens, kinds = (
            self._fields["tokenizer.ggml.tokens"],
            self._fields.get("tokenizer.ggml.token_type", []),
        )
        added = {tokens[number]: number for number, kind in enumerate(kinds) if kind in (3, 4)}
        return ProofSide(
            asked=(),
            vocabulary=len(tokens),
            added=added,
            stop_ids=tuple(self._stop_ids()),
            read_by=f"llama.cpp ({packages.distribution(self.module)} {packages.version('llama-cpp-py-sync')})",
        )

    def _stop_ids(self) -> Iterator[int]:
        """The tokens that llama.cpp treats as the end of an answer."""
        lib, vocabulary = self.llama._lib, self.llama._vocab
        ends = lib.llama_vocab_is_eog
        yield from (number for number in range(self.llama.n_vocab) if ends(vocabulary, number))


_GGUF_FIELDS = (
    "tokenizer.chat_template",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
)
