"""The toolkit's own server options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """The options that are not ms-swift settings. Their defaults are defined only here.

    Args:
        checkpoint: a checkpoint, a run directory or an output directory.
        type: ``lora``, ``full`` or ``multi-lora``; None to find out.
        multi_lora_config: a file, or a mapping, of adapter names and directories.
        base_model: location of the base model, if it is no longer where training found it.
        infer_backend: ``auto``, ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``; None to use the setting of that name.
        merge_lora: merge the adapter into its base first.
        trust_code: accept a checkpoint that names Python files to import.
        api_key_file: file that contains the API key; None for the environment variable.
        no_auth: allow other machines to connect without a key.
        log_requests: write prompts and answers to the log.
        allow_origin: origins of web pages that may send requests, in addition to the server's own, such as
            ``https://example.org``; their host names are also accepted in ``Host``.
        media_dir: directory whose files requests may name; None for none.
        allow_media_urls: fetch images, audio and video from the public addresses that requests name.
        max_body_mb: largest request body, in MiB.
        max_tokens_limit: longest answer, in tokens.
        drain_seconds: seconds that running answers have to finish when the server stops.
        allow_runtime_lora: load and unload adapters while serving, from below ``adapter_dir``.
        adapter_dir: directories below which adapters may be loaded while serving.
        chat: serve a chat page at ``/``.
        output_dir: parent of the run directory.
        verbose: also show the output of ms-swift.
        from_line: the settings come from a command line or script that starts ms-swift.
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
