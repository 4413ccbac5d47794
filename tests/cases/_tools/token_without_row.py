"""token_without_row.py FOLDER: the embedded model whose tokenizer has one token, <happy>, that its embedding lacks."""

import json
import sys
from pathlib import Path

from swift_toolkit.model.builtin import materialise

base, folder = materialise("builtin/SmolLM2-135M-Instruct"), Path(sys.argv[1])
folder.mkdir()
for file in base.iterdir():
    if file.name != "tokenizer.json":
        (folder / file.name).symlink_to(file)
tokenizer = json.loads((base / "tokenizer.json").read_text())
token = {"id": 49152, "content": "<happy>", "single_word": False, "lstrip": False, "rstrip": False}
tokenizer["added_tokens"].append(token | {"normalized": False, "special": True})
(folder / "tokenizer.json").write_text(json.dumps(tokenizer))
