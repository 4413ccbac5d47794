"""tokenizer.py FOLDER KEY=JSON ...: the embedded model with other values in tokenizer_config.json, under the name FOLDER."""

import json
import sys
from pathlib import Path

import embedded

pairs = (word.partition("=") for word in sys.argv[2:])
other = {key: json.loads(value) for key, _, value in pairs}
embedded.with_other("tokenizer_config.json", Path(sys.argv[1]), lambda settings: settings.update(other))
