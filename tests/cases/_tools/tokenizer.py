"""tokenizer.py FOLDER KEY=JSON ...: the embedded model with other values in tokenizer_config.json, under the name FOLDER."""

import json
import sys
from pathlib import Path

from swift_toolkit.model.builtin import materialise

base, folder = materialise("builtin/SmolLM2-135M-Instruct"), Path(sys.argv[1])
folder.mkdir()
for file in base.iterdir():
    if file.name != "tokenizer_config.json":
        (folder / file.name).symlink_to(file)
settings = json.loads((base / "tokenizer_config.json").read_text())
for word in sys.argv[2:]:
    key, _, value = word.partition("=")
    settings[key] = json.loads(value)
(folder / "tokenizer_config.json").write_text(json.dumps(settings))
