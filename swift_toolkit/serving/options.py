"""The toolkit's own options of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """The options that are not settings of ms-swift; their defaults stand here and nowhere else.

    Args:
        checkpoint: a checkpoint, a run directory or an output directory.
        type: ``lora``, ``full`` or ``multi-lora``; None to find out.
        multi_lora_config: a file, or a mapping, of adapter names and directories.
        base_model: where the base model is, if it is not where training found it.
        infer_backend: ``auto``, ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``; None for the setting of that name.
        merge_lora: merge the adapter into its base first.
        trust_code: accept a checkpoint that names Python files to import.
        api_key_file: file that holds the API key; None for the environment variable.
        no_auth: serve other machines without a key.
        log_requests: write prompts and answers to the log.
        allow_origin: origins of web pages that may ask, beside the server's own: ``https://example.org``; their
            names may also be the server's.
        media_dir: directory whose files requests may name; None for none.
        allow_media_urls: fetch pictures, sounds and films from the public addresses that requests name.
        max_body_mb: longest request, in MiB.
        max_tokens_limit: longest answer, in tokens.
        drain_seconds: time for running answers when the server ends, in seconds.
        allow_runtime_lora: load and unload adapters while serving, from below ``adapter_dir``.
        adapter_dir: directories below which adapters may be loaded while serving.
        chat: serve a chat page at ``/``.
        output_dir: where the run directory goes.
        verbose: also show what ms-swift prints.
        from_line: the settings come from a line or script that starts ms-swift.
    """

    checkpoint: str | None = None
    type: str | None = None
    multi_lora_config: str | Mapping[str, str] | None = None
    base_model: str | None = None
    infer_backend: str | None = None
    merge_lora: bool = False
    trust_code: bool = False
    api_key_file: str | None = None
    no_auth: bool = False
    log_requests: bool = False
    allow_origin: Sequence[str] = ()
    media_dir: str | None = None
    allow_media_urls: bool = False
    max_body_mb: float = 16
    max_tokens_limit: int = 4096
    drain_seconds: int = 30
    allow_runtime_lora: bool = False
    adapter_dir: Sequence[str] = ()
    chat: bool = False
    output_dir: str = "output/deploy"
    verbose: bool = False
    from_line: bool = False


OPTION_NAMES = frozenset(one.name for one in fields(ServingOptions))
