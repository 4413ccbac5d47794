"""token_without_row.py FOLDER: the embedded model whose tokenizer has one token, <happy>, that its embedding lacks."""

import sys
from pathlib import Path

import embedded

TOKEN = {"id": 49152, "content": "<happy>", "single_word": False, "lstrip": False, "rstrip": False}
TOKEN |= {"normalized": False, "special": True}
embedded.with_other(
    "tokenizer.json", Path(sys.argv[1]), lambda tokenizer: tokenizer["added_tokens"].append(TOKEN)
)
