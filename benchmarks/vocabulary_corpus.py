"""Translate every ms-swift command in ms-swift's own examples and documents, of all generations.

    git clone https://github.com/modelscope/ms-swift
    python benchmarks/vocabulary_corpus.py ms-swift

Reads the tags below out of the clone, finds the commands in shell scripts and in the code blocks of Markdown files,
translates each for the installed ms-swift and lists those with a name that is not understood.
"""
from __future__ import annotations
import argparse, json, re, subprocess, sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from swift_toolkit.shell import SwiftCommand, all_commands
from swift_toolkit.swift_fields import fields, installed
from swift_toolkit.vocabulary import translate

TAGS = ("v1.1.2", "v1.7.3", "v2.6.1", "v3.0.3", "v3.8.3", "v3.12.6", "v4.5.2")
BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=True).stdout.decode("utf-8", "replace")


def scripts(clone: Path, tag: str) -> Iterator[tuple[str, str]]:
    for name in git(clone, "ls-tree", "-r", "--name-only", tag).splitlines():
        if name.endswith((".sh", ".md")):
            text = git(clone, "show", f"{tag}:{name}")
            for block in BLOCK.findall(text) if name.endswith(".md") else [text]:
                yield name, block


def corpus(clone: Path, tag: str) -> dict[str, tuple[str, SwiftCommand]]:
    found = {}
    for name, text in scripts(clone, tag):
        for command in all_commands(text):
            if command.values:
                found.setdefault(json.dumps([command.command, command.values], sort_keys=True), (name, command))
    return found
