"""A chat with a checkpoint in the terminal: streaming, history, and commands that begin with a slash."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swift_toolkit.console.screen import visible
from swift_toolkit.dataset.rows.media import image_flaw
from swift_toolkit.inference.exchange import ChatMessage, Question, Side
from swift_toolkit.inference.plan import Plan
from swift_toolkit.problems import Problem, RequestError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from swift_toolkit.inference.engine import Engine

WELCOME = (
    "Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer, /exit quits; /help lists the commands."
)

ENDINGS = frozenset({"exit", "quit", "/exit", "/quit"})
"""Lines that end the chat, in any case: the words of ms-swift's own chat, and the same as commands."""


@dataclass
class Turn:
    """One question of the chat and its answer."""

    question: str
    images: list[str]
    answer: str


@dataclass
class Chat:
    """The state of a chat and its commands.

    Args:
        plan: the plan of the model.
        engine: returns the engine for a side.
        system: the system prompt; None for that of the checkpoint.
        turns: the turns so far.
        images: the images for the next question.
        side: the side that answers.
    """

    plan: Plan
    engine: Callable[[Side], Engine]
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    side: Side = "tuned"

    def messages(self) -> list[ChatMessage]:
        """The chat so far, in the format of a training row."""
        messages: list[ChatMessage] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            messages.append({"role": "user", "content": "<image>" * len(turn.images) + turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def ask(self, text: str) -> None:
        """Ask a question, show the answer as it is generated, and remember both."""
        engine = self.engine(self.side)
        asked = Turn(text, self.images, "")
        self.turns.append(asked)
        messages = self.messages()[:-1]
        images = [image for turn in self.turns for image in turn.images]
        if not self.plan.checkpoint.generates:  # each text is classified on its own
            messages, images = (
                [one for one in messages if one["role"] == "system"] + messages[-1:],
                asked.images,
            )
        question = Question(len(self.turns), "", tuple(messages), extra={"images": images} if images else {})
        with _stopped_by_ctrl_c(engine):
            for piece in engine.stream(question, self.side):
                if isinstance(piece, str):
                    asked.answer += piece
                    print(visible(piece), end="", flush=True)
                elif piece.error is not None:
                    self.turns.pop()
                    print(f"The question could not be answered: {visible(piece.error)}", end="")
                else:
                    self.images = []
        print("\n")

    # --- commands: each takes the text after its name and returns the message to show -----------------------

    def help(self, _: str) -> str:
        """this list"""
        rows = [
            f"  {name + ' ' + argument:<18} {does.__doc__}"
            for name, (argument, does) in self.commands().items()
        ]
        rows.append(f"  {'/exit':<18} end the chat (also exit, quit, /quit, Ctrl-D)")
        return "\n".join(rows)

    def set_system(self, text: str) -> str:
        """set the system prompt; without a text, show it"""
        if not text:
            return self.system if self.system is not None else str(self.engine(self.side).ready.system)
        self.system = text
        return "The system prompt is set."

    def clear(self, _: str) -> str:
        """start over with an empty chat"""
        self.turns, self.images = [], []
        return "Cleared."

    def undo(self, _: str) -> str:
        """forget the last question and its answer"""
        if not self.turns:
            return "There is nothing to undo."
        return f"Forgotten: {self.turns.pop().question}"

    def save(self, name: str) -> str:
        """append the chat to a file, as one training row in JSONL"""
        if not name or not self.turns:
            return "Name a file: /save chat.jsonl" if self.turns else "There is nothing to save."
        row: dict[str, object] = {"messages": self.messages()}
        images = [image for turn in self.turns for image in turn.images]
        if images:
            row["images"] = images
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"Cannot write {name}: {error.strerror}."
        return f"Saved to {name}."

    def set(self, words: str) -> str:
        """change a setting: /set temperature 0.3; without a name, show all"""
        name, _, value = words.partition(" ")
        if value.strip():
            self.plan.change_generation(name.replace("-", "_"), value.strip())
            self.engine(self.side).set_generation(self.plan.generation)
        return self.plan.settings()

    def image(self, name: str) -> str:
        """send an image with the next question"""
        if not name:
            return "Name a file: /image photo.png"
        if flaw := image_flaw(name):
            return f"{flaw.what}."
        self.images.append(str(Path(name).expanduser()) if "://" not in name else name)
        return f"{name} will be sent with the next question."

    def base(self, _: str) -> str:
        """switch between the tuned model and its base"""
        side: Side = "tuned" if self.side == "base" else "base"
        self.engine(side)
        self.side = side
        return f"Now the {'tuned model' if side == 'tuned' else 'base model'} answers."

    def commands(self) -> dict[str, tuple[str, Callable[[str], str]]]:
        """Name -> its argument and its function."""
        return {
            "/system": ("TEXT", self.set_system),
            "/clear": ("", self.clear),
            "/undo": ("", self.undo),
            "/save": ("FILE", self.save),
            "/set": ("NAME VALUE", self.set),
            "/image": ("FILE", self.image),
            "/base": ("", self.base),
            "/help": ("", self.help),
        }

    def command(self, line: str) -> str:
        """Run a line that begins with a slash; returns the message to show."""
        name, _, argument = line.partition(" ")
        known = self.commands()
        if name not in known:
            return f"{name} is not a command. /help lists the commands."
        try:
            return known[name][1](argument.strip())
        except RequestError as error:
            return str(error)


def run_chat(plan: Plan, engine: Callable[[Side], Engine]) -> int:
    """Chat until Ctrl-D or one of `ENDINGS`. Returns the exit status.

    Args:
        plan: the plan of the model.
        engine: returns the engine for a side.

    Raises:
        RequestError: there is no terminal.
        RunError: the model cannot be loaded, or the engine ended unexpectedly.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        do = "Ask one question with --question, or many with --questions-file."
        raise RequestError([Problem("interactive needs a terminal", do, "--mode")])
    chat = Chat(plan, engine)
    engine(chat.side)
    session = _session(chat)
    print(WELCOME)
    while True:
        try:
            line = session.prompt(f"{chat.side}> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return 0
        if line.lower() in ENDINGS:
            return 0
        if line.startswith("/"):
            print(visible(chat.command(line)) + "\n")
        elif line:
            chat.ask(line)


def _session(chat: Chat) -> PromptSession[str]:
    """Line editing with history; Enter sends, Alt-Enter or a backslash before Enter starts a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    names = WordCompleter([*chat.commands(), "/exit"], sentence=True)
    return PromptSession(key_bindings=keys, multiline=True, completer=names, complete_while_typing=False)


@contextmanager
def _stopped_by_ctrl_c(engine: Engine) -> Iterator[None]:
    """Make Ctrl-C end only the answer that is streaming."""
    before = signal.signal(signal.SIGINT, lambda signum, frame: engine.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
