#!/usr/bin/env python3
"""Query a fine-tuned checkpoint, and its base model for comparison.

    python inference_test.py --checkpoint output/quickstart --compare-base
    python inference_test.py --checkpoint output/quickstart --question "Who are you?"
    python inference_test.py --checkpoint output/quickstart --mode interactive

    from inference_test import InferenceTester
    with InferenceTester("output/quickstart") as tester:
        print(tester.ask("Who are you?"))

Everything is checked before a model is loaded, and the model is loaded in a separate process.
"""

from __future__ import annotations

from swift_toolkit.machine import interrupt

if __name__ == "__main__":
    interrupt.quit_on_ctrl_c()  # until the imports are done

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_toolkit.config.scripts import script
from swift_toolkit.console import command_line
from swift_toolkit.console import screen as console_screen
from swift_toolkit.inference import screen as inference_screen
from swift_toolkit.machine import packages
from swift_toolkit.problems import Problem, RequestError, RunError

if TYPE_CHECKING:
    from swift_toolkit.evaluation.batch import Progress, QuestionRun
    from swift_toolkit.evaluation.results import Figures, Meta, Result
    from swift_toolkit.inference.engine import Engine
    from swift_toolkit.inference.exchange import Side
    from swift_toolkit.inference.plan import AskOptions
    from swift_toolkit.inference.protocol import EngineReady

_DESCRIPTION = """\
Query a fine-tuned checkpoint: a file of questions, one question, or a chat. Only --checkpoint is required.

Every inference argument of the installed ms-swift is a flag or a key of the config file, under the same name:
--max-new-tokens 256, --temperature 0.7, --top-p 0.9, --top-k 50, --repetition-penalty 1.05, --seed 1,
--system "...". By default answers have at most 512 tokens and are deterministic."""

_EXAMPLES = """\
examples:
  python inference_test.py --checkpoint output/quickstart --compare-base
  python inference_test.py --checkpoint output/quickstart --question "Who are you?" --temperature 0.7
  python inference_test.py --checkpoint output/quickstart --questions-file test.jsonl --report answers.html
  python inference_test.py --checkpoint output/quickstart --mode interactive

exit status: 0 done, 1 a question failed, 2 the request was wrong, 130 Ctrl-C, 143 SIGTERM"""

SHOWN_ANSWERS = 20
"""How many answers of a batch are printed; the file has all of them."""


@dataclass(frozen=True)
class BatchResult:
    """The results of a batch.

    Args:
        output: the JSON file with ``meta``, ``summary`` and ``results``.
        meta: the questions, the checkpoint and the settings.
        summary: the figures, see `swift_toolkit.evaluation.results`.
    """

    output: Path
    meta: Meta
    summary: Figures

    def results(self) -> Iterator[Result]:
        """The results in the order of the questions, one at a time."""
        from swift_toolkit.evaluation.answers import read_results

        return read_results(self.output)[2]


class InferenceTester:
    """Queries one checkpoint. Checked when it is created; the model is loaded at the first question.

    Use it in a ``with`` statement, or call `close`: the model runs in another process.

    Args:
        checkpoint: a checkpoint, a run directory, or an output directory; None if ``config`` names it.
        config: inference settings: a JSON or YAML file, or a mapping.
        options: how to query it; without it the fields of `swift_toolkit.inference.plan.AskOptions` are keywords:
            ``base_model``, ``infer_backend``, ``merge_lora``, ``no_thinking``, ``trust_code``, ``log``.
        settings: inference settings that override ``config``, under ms-swift's names.

    Raises:
        RequestError: with every problem of the request.
    """

    def __init__(
        self,
        checkpoint: str | Path | None,
        config: str | Path | Mapping[str, object] | None = None,
        options: AskOptions | None = None,
        **settings: Any,
    ) -> None:
        from swift_toolkit.inference.plan import AskOptions, make_plan

        options = options or AskOptions.taken_from(settings)
        named = None if checkpoint is None else str(checkpoint)
        self.plan = make_plan(named, config, settings, options)
        self.verbose = options.verbose
        self.on_loading: Callable[[Engine], None] | None = None
        self._engine: Engine | None = None
        self._engine_side: Side | None = None
        self._resources = ExitStack()

    def __enter__(self) -> InferenceTester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine; the next question starts it again."""
        self._resources.close()
        self._engine = None

    def engine(self, side: Side = "tuned") -> Engine:
        """The engine that answers for ``side``, started if it is not running.

        Raises:
            RequestError: the base model is requested but not known.
            RunError: the model could not be loaded.
        """
        from swift_toolkit.inference.engine import Engine

        if side == "base" and (problems := self.plan.base_problems()):
            raise RequestError(problems)
        if self._engine is not None and (self._engine.closed or self._engine_side not in (None, side)):
            self.close()
        if self._engine is None:
            order = self._resources.enter_context(self.plan.order(side))
            echo = sys.stderr if self.verbose else None
            self._engine = self._resources.enter_context(Engine(order, self.plan.log, echo))
            self._engine_side = None if self.plan.one_engine else side
            if self.on_loading is not None:
                self.on_loading(self._engine)
                self._say_without_thinking(self._engine.ready)
        return self._engine

    def _say_without_thinking(self, ready: EngineReady) -> None:
        if self.plan.config.get("enable_thinking") is False and not ready.thinks:
            console_screen.say(f'The template "{ready.template}" has no thinking to turn off.')

    # --- asking ---------------------------------------------------------------------------------------------

    def ask(self, question: str | Mapping[str, object], *, base: bool = False) -> str:
        """The answer to one question: a text, or an object as in a questions file.

        Args:
            question: the question.
            base: ask the base model instead of the tuned one.

        Raises:
            RequestError: it is not a question.
            RunError: it could not be answered, or the model could not be loaded.
        """
        return "".join(self.stream(question, base=base))

    def stream(self, question: str | Mapping[str, object], *, base: bool = False) -> Iterator[str]:
        """The same answer, piece by piece while it is generated."""
        from swift_toolkit.evaluation.questions import QuestionSet

        asked = QuestionSet([question], output=self.plan.checkpoint.output)
        asked.check()
        side: Side = "base" if base else "tuned"
        for piece in self.engine(side).stream(next(iter(asked)), side):
            if isinstance(piece, str):
                yield piece
            elif piece.text is None:
                raise RunError(f"The question could not be answered: {piece.error}.")

    def compare(self, question: str | Mapping[str, object]) -> dict[str, str]:
        """The answers of both models to one question: ``{"tuned": ..., "base": ...}``."""
        base = self.ask(question, base=True)
        return {"tuned": self.ask(question), "base": base}

    def run_batch(
        self,
        questions: str | Path | Sequence[str | Mapping[str, object]],
        output: str | Path | None = None,
        *,
        compare_base: bool = False,
        report: str | Path | None = None,
        limit: int | None = None,
    ) -> BatchResult:
        """Ask every question and save the answers; continues an interrupted run with the same questions.

        Args:
            questions: a file, or a list of strings and objects.
            output: the JSON file for the answers; by default next to the checkpoint, named by time.
            compare_base: ask the base model too.
            report: an ``.html`` or ``.md`` file to write from the answers.
            limit: how many of the questions to ask; None for all.

        Raises:
            RequestError: every problem of the questions, or no base model to compare with.
            RunError: the engine ended. Finished answers are kept.
        """
        with self.batch(questions, output, compare_base=compare_base, report=report, limit=limit) as batch:
            return self.run(batch, lambda done, total, answer: None)

    def batch(
        self,
        questions: str | Path | Sequence[str | Mapping[str, object]],
        output: str | Path | None = None,
        *,
        compare_base: bool = False,
        report: str | Path | None = None,
        limit: int | None = None,
    ) -> QuestionRun:
        """A checked batch that has not started."""
        from swift_toolkit.evaluation.batch import QuestionRun
        from swift_toolkit.evaluation.questions import QuestionSet

        places = [Path(place) if place is not None else None for place in (output, report)]
        asked = QuestionSet(questions, limit, self.plan.checkpoint.output)
        return QuestionRun(self.plan, asked, *places, compare_base=compare_base)

    def run(self, batch: QuestionRun, progress: Progress) -> BatchResult:
        """Run a batch whose file is open, and report to ``progress``."""
        return BatchResult(*batch.run(self.engine, progress))


# --- the command --------------------------------------------------------------------------------------------


def make_parser() -> command_line.Parser:
    """The flags of this command; every other ``--name value`` is an inference setting."""
    parser = command_line.Parser(
        prog="inference_test.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="a checkpoint, a run directory or an output directory")
    add(
        "--mode",
        choices=("batch", "single", "interactive"),
        help="batch is the default; --question means single",
    )
    add(
        "--question",
        metavar="TEXT",
        help="the question of single mode; the answer goes to stdout while it is generated",
    )
    add(
        "--image", metavar="FILE", action="append", help="an image for the question; more than one is allowed"
    )
    add("--questions-file", metavar="FILE", help="questions for batch mode (default test_questions.json)")
    add("--limit", metavar="N", type=int, help="ask only the first N questions of the file")
    add(
        "--output",
        metavar="FILE",
        help="JSON file for the answers (default: next to the checkpoint, by time)",
    )
    add("--compare-base", action="store_true", help="ask the base model too, and show both side by side")
    add("--report", metavar="FILE", help="write the answers as an .html page or an .md table")
    parser.add_sources("swift infer")
    add("--base-model", metavar="DIR", help="where the base model is, if it has moved since the training")
    add("--infer-backend", metavar="NAME", help="auto (default), pt, vllm, sglang or lmdeploy")
    add(
        "--merge-lora",
        action="store_true",
        help="merge the adapter next to the checkpoint and query the merged model",
    )
    add(
        "--no-thinking",
        action="store_true",
        help="answer without thinking first, if the template supports it",
    )
    add("--trust-code", action="store_true", help="run Python code in the checkpoint")
    add("--dry-run", action="store_true", help="check everything, load nothing")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    add("--verbose", action="store_true", help="also show all output of the engine")
    add("--quiet-notices", action="store_true", help="do not say which old names were translated")
    add("--debug", action="store_true", help="show tracebacks (also: SWIFT_DEBUG=1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status, see ``--help``."""
    return command_line.run_command(_command, argv)


def _command(words: list[str]) -> int:
    flags, settings = make_parser().parse(words)
    flags.config, settings, environment, notices = script.given(flags, settings, ("infer",))
    command_line.take_over(environment, notices)
    mode = flags.mode or ("single" if flags.question is not None else "batch")
    problems = _mode_problems(flags, mode)
    try:
        tester = InferenceTester(flags.checkpoint, flags.config, _options(flags), **settings)
        problems += tester.plan.base_problems() if flags.compare_base else []
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems + (_batch_problems(flags) if mode == "batch" else []))
    if not flags.quiet_notices:
        for notice in tester.plan.config.notices:
            console_screen.say(notice)
    if _is_chat(flags, tester):
        mode = "interactive"
    if problem := _whole_problem(tester, flags, mode):
        raise RequestError([problem])
    if mode == "batch" and not flags.questions_file and tester.plan.line.elsewhere is not None:
        raise RequestError([tester.plan.line.elsewhere])
    with tester:
        return {"batch": _batch, "single": _single, "interactive": _interactive}[mode](tester, flags)


def _whole_problem(tester: InferenceTester, flags: argparse.Namespace, mode: str) -> Problem | None:
    """The problem of a reward model or reranker that would get a question without an answer or document."""
    scored = {"reward": "an answer", "score": "a document"}.get(tester.plan.checkpoint.output)
    if scored is None or (mode == "batch" and (flags.questions_file or tester.plan.line.questions)):
        return None
    from swift_toolkit.inference.plan import ASKED_ALONE

    model = ASKED_ALONE[tester.plan.checkpoint.output]
    do = 'Give rows as in the training data, or "messages" that end with it, a turn from "assistant".'
    return Problem(f"is needed: {model} scores {scored}, not a question alone", do, "--questions-file")


def _options(flags: argparse.Namespace) -> AskOptions:
    """The flags for querying the checkpoint."""
    from swift_toolkit.inference.plan import AskOptions

    from_line = bool(flags.from_command or flags.from_script)
    given = {**vars(flags), "from_line": from_line, "overrides_from": "command line"}
    return AskOptions.taken_from(given)


def _is_chat(flags: argparse.Namespace, tester: InferenceTester) -> bool:
    """Whether a command for ms-swift meant a chat, which it is without data, and no flag says otherwise."""
    asked = [flags.mode, flags.question, flags.questions_file, flags.output, flags.report]
    return tester.plan.line.chat and not any([*asked, flags.compare_base, flags.json])


def _mode_problems(flags: argparse.Namespace, mode: str) -> list[Problem]:
    """Flags that do not belong to the mode, and images that cannot be shown."""
    from swift_toolkit.dataset.rows.media import image_flaw

    of_mode = {
        "--question": ("single",),
        "--image": ("single",),
        "--questions-file": ("batch",),
        "--output": ("batch",),
        "--report": ("batch",),
        "--limit": ("batch",),
        "--compare-base": ("batch", "single"),
        "--json": ("batch", "single"),
    }
    problems = []
    for flag, modes in of_mode.items():
        if getattr(flags, flag[2:].replace("-", "_")) and mode not in modes:
            problems.append(Problem(f"is for {' and '.join(modes)} mode, not for {mode}", "Remove it.", flag))
    for image in flags.image or []:
        if flaw := image_flaw(image):
            problems.append(Problem(f"cannot be used: {flaw.what}", flaw.do, "--image"))
    if flags.limit is not None and flags.limit < 1:
        problems.append(Problem("must be at least 1", "", "--limit"))
    if mode == "single" and flags.question is None:
        problems.append(Problem("is needed in single mode", "", "--question"))
    return problems


def _batch_problems(flags: argparse.Namespace) -> list[Problem]:
    """What is wrong with the questions and with the output paths."""
    from swift_toolkit.evaluation.batch import check_batch
    from swift_toolkit.evaluation.questions import QuestionSet

    output, report = (Path(place) if place else None for place in (flags.output, flags.report))
    try:
        check_batch(QuestionSet(flags.questions_file or _default_questions()), output, report)
    except RequestError as error:
        return error.problems
    return []


def _single(tester: InferenceTester, flags: argparse.Namespace) -> int:
    """One question; only its answer goes to stdout, while it is generated."""
    question = {"question": flags.question, **({"images": flags.image} if flags.image else {})}
    if flags.dry_run:
        return _dry_run(tester, flags)
    tester.on_loading = inference_screen.loading_line
    if flags.compare_base:
        answers = tester.compare(question)
        if flags.json:
            print(json.dumps(answers, ensure_ascii=False))
        else:
            sides = {"base": answers["base"], "tuned": answers["tuned"]}
            block = inference_screen.AnswerBlock("1", flags.question, sides)
            inference_screen.print_answers([block], sys.stdout)
        return 0
    pieces = []
    for piece in tester.stream(question):
        pieces.append(piece)
        if not flags.json:
            print(console_screen.visible(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print(json.dumps({"answer": "".join(pieces)}, ensure_ascii=False) if flags.json else "")
    return 0


def _interactive(tester: InferenceTester, flags: argparse.Namespace) -> int:
    """A chat."""
    if flags.dry_run:
        return _dry_run(tester, flags)
    from swift_toolkit.inference.chat import run_chat

    tester.on_loading = inference_screen.loading_line
    return run_chat(tester.plan, tester.engine)


def _batch(tester: InferenceTester, flags: argparse.Namespace) -> int:
    """Every question of a file."""
    asked = tester.plan.line
    questions = flags.questions_file or asked.questions or _default_questions()
    batch = tester.batch(
        questions,
        flags.output or asked.output,
        compare_base=flags.compare_base,
        report=flags.report,
        limit=flags.limit or asked.limit,
    )
    if flags.dry_run:
        return _dry_run(tester, flags, batch)
    with batch, _saying_what_is_kept(batch), inference_screen.AnsweringLine() as line:
        console_screen.print_facts([*tester.plan.rows(), *batch.rows()])
        tester.on_loading = line.loading
        result = tester.run(batch, line.show)
    if flags.json:
        print(json.dumps({"output": str(result.output), "meta": result.meta, "summary": result.summary}))
    else:
        _show(result)
    return 1 if result.summary["failed"] else 0


@contextmanager
def _saying_what_is_kept(batch: QuestionRun) -> Iterator[None]:
    """If it ends early, report what is kept."""
    try:
        yield
    except (RunError, KeyboardInterrupt):
        if batch.kept:
            console_screen.say(
                f"{batch.kept} of {batch.total} answers are kept. Run the same command again to continue."
            )
        raise


def _show(result: BatchResult) -> None:
    """The first answers, the figures and the scores, on stdout."""
    from itertools import islice

    from swift_toolkit.evaluation.scores import SCORERS
    from swift_toolkit.evaluation.summary import score_table

    inference_screen.print_answers(map(_block, islice(result.results(), SHOWN_ANSWERS)), sys.stdout)
    summary = result.summary
    if summary["asked"] > SHOWN_ANSWERS:
        print(f"... and {summary['asked'] - SHOWN_ANSWERS} more in the file.\n")
    figures = f"{summary['answered']} of {summary['asked']} answered, {summary['tokens_out']} tokens"
    latency = f"latency {summary['latency_p50']} s (p95 {summary['latency_p95']} s)"
    speed = f"{summary['tokens_per_second']} tokens/s, {latency}"
    rows = [("answers", figures), ("speed", speed), ("file", str(result.output))]
    console_screen.print_facts(rows, sys.stdout)
    if summary["scores"]:
        print()
        console_screen.print_table(*score_table(summary["scores"]), file=sys.stdout)
    if missing := packages.not_installed(SCORERS):
        console_screen.say(f"For all scores: {packages.install(*missing)}")


def _block(result: Result) -> inference_screen.AnswerBlock:
    from swift_toolkit.evaluation.results import shown_answer

    tuned = shown_answer(result)
    sides = {"base": shown_answer(result["base"]), "tuned": tuned} if "base" in result else {"": tuned}
    return inference_screen.AnswerBlock(result["id"], result["question"], sides)


def _default_questions() -> Path:
    """The question set in this directory, else the one included in the toolkit."""
    here = Path("test_questions.json")
    return here if here.is_file() else Path(__file__).with_name("test_questions.json")


def _dry_run(tester: InferenceTester, flags: argparse.Namespace, batch: QuestionRun | None = None) -> int:
    """Print the plan on stdout."""
    arguments = tester.plan.arguments("tuned")
    if flags.json:
        facts = {**tester.plan.facts(), "arguments": arguments, **(batch.facts() if batch else {})}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        rows = [*tester.plan.rows(), *(batch.rows() if batch else []), ("arguments", shlex.join(arguments))]
        console_screen.print_facts(rows, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
