"""A chat from its first line to its last: questions go to every side, lines that begin with a stroke are commands.

/take SIDE      that answer was better: both sides go on from it
/again          ask the last question once more
...             COMMANDS has all of them
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_rlhf.chat.screen import NAMES, Screen
from llm_rlhf.chat.talk import Talk
from llm_rlhf.chat.voices import Heard, Scores, Voice
from llm_rlhf.errors import DataError, RecipeError, RunError
from llm_rlhf.models.streaming import Sampling
from llm_rlhf.recipe.values import nearest

BLOCK = '"""'  # opens and closes a message of several lines
COMMANDS = {
    "/take left|right": "that answer was better: both sides go on from it (their names do as well)",
    "/again": "ask the last question once more, which gives another answer",
    "/undo": "take the last question and its answers back",
    "/reset": "begin anew; system message and settings stay",
    "/system [TEXT]": "show the system message, or set another and begin anew; /system - takes it away",
    "/set [NAME VALUE]": "temperature, top_p, top_k, response_length or seed; alone, show them",
    "/save FILE.jsonl": "write the conversation, and beside it in FILE-pairs.jsonl what was better",
    "/help": "this list",
    "/exit": "leave, as Ctrl-D does",
    BLOCK: "opens and closes a message of several lines",
    "//...": "a message that begins with a stroke",
    "Ctrl-C": "stop an answer, whose beginning stays",
}
LEAVING = ("/exit", "/quit", "/bye")


class Session:
    """A chat.

    Args:
        ask: reads a line after a prompt; EOFError where there are no more.

    Attributes:
        failed: how many questions could not be answered, or commands done.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        scores: Scores,
        sampling: Sampling,
        screen: Screen,
        ask: Callable[[str], str],
        fail: Callable[[str], None],
        system: str | None = None,
    ) -> None:
        self.voices, self.scores, self.sampling, self.screen = voices, scores, sampling, screen
        self.ask, self.fail, self.failed = ask, fail, 0
        self.talk = Talk([voice.name for voice in voices], system)

    def run(self) -> None:
        """Until there are no more lines."""
        if self.screen.asks:
            self.screen.say(self.opening())
        for line in self._lines():
            try:
                self.hear(line)
            except (DataError, RecipeError, RunError) as error:
                self.failed += 1
                self.fail(str(error))
            except KeyboardInterrupt:  # a second one while somebody answers
                self.screen.say("Stopped; the question is taken back.")

    def opening(self) -> str:
        """Who is there, and how to go on."""
        place = dict(zip((voice.name for voice in self.voices), ("left", "right"), strict=False))
        sides = [f"{v.name}{f' ({place[v.name]})' * (len(self.voices) > 1)}: {v.what}" for v in self.voices]
        scored = [f"{NAMES[role]}: {models}" for role, models in self.scores.names.items()]
        system = [f"system: {self.talk.system}"] if self.talk.system else []
        return "\n".join([*sides, *scored, *system, f"{self.sampling}", "/help lists commands; Ctrl-D leaves.", ""])

    def hear(self, line: str) -> None:
        """A question, or a command.

        Raises:
            DataError, RecipeError, RunError: where nothing comes of it; the chat goes on as if it had not been said.
        """
        if line.startswith("//"):
            self.turn(line[1:])
        elif line.startswith("/"):
            self._command(line)
        elif line.strip():
            self.turn(line)

    def turn(self, asked: str) -> None:
        """Ask every side, and show and keep what they say."""
        answers: dict[str, Heard] = {}
        unread: list[str] = []
        prompts = self.talk.prompts(asked)
        with self.screen.board(asked, self.talk.sides) as board:
            for voice in self.voices:

                def tell(thought: str, text: str, side: str = voice.name) -> None:
                    board.tell(side, thought, text)

                heard = answers[voice.name] = voice.answer(prompts[voice.name], self.sampling, tell)
                try:
                    scores = self.scores.of(heard)
                except DataError as error:  # the answer stands all the same
                    scores = {}
                    unread.append(str(error))
                board.answered(voice.name, heard, scores)
        for complaint in unread:
            self.fail(complaint)
        if any(heard.interrupted and not heard.text.strip() for heard in answers.values()):
            self.screen.say("Stopped before anything was said; the question is taken back.")
            return
        cut = [side for side, heard in answers.items() if not heard.stopped]
        self.talk.heard(asked, {side: heard.turn for side, heard in answers.items()}, cut)

    def _lines(self) -> Iterator[str]:
        """What is typed or piped in, messages of several lines in one piece."""
        while True:
            try:
                line = self.ask("> ")
                if line.strip().startswith(BLOCK):
                    block = [line.strip()[len(BLOCK) :]]
                    while not block[-1].rstrip().endswith(BLOCK):
                        block.append(self.ask(". "))
                    line = "\n".join(block).rstrip()[: -len(BLOCK)].strip("\n")
                    yield "/" + line if line.startswith("/") else line
                    continue
            except EOFError:
                if self.screen.asks:
                    self.screen.say("")  # the shell's own line is to be the next
                return
            except KeyboardInterrupt:
                self.screen.say("\n(Ctrl-D or /exit leaves)")
                continue
            if line.strip() in LEAVING:
                return
            yield line

    def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        known: dict[str, Callable[[str], None]] = {
            "/take": self._take, "/again": self._again, "/undo": self._undo, "/reset": self._reset,
            "/system": self._system, "/set": self._set, "/save": self._save, "/help": self._help,
        }  # fmt: skip
        if name not in known:
            raise RecipeError(
                f"There is no command {name}.{nearest(name, list(known))} A message that begins with a stroke begins "
                "with two: //"
            )
        known[name](rest)

    def _take(self, rest: str) -> None:
        if len(self.voices) < 2:
            raise RecipeError("There is one side only, so none to take; name two: llm-rlhf chat ONE OTHER.")
        places = dict(zip(("left", "right"), self.talk.sides, strict=False)) | {s: s for s in self.talk.sides}
        if rest not in places:
            raise RecipeError(f"/take is {rest!r}; say which answer was better: /take {' or /take '.join(places)}.")
        compared = self.talk.take(places[rest])
        why = "" if compared else " They had answered different conversations, so that this is no comparison to save."
        self.screen.say(f"Both go on from what {places[rest]} said.{why}")

    def _again(self, rest: str) -> None:
        before = list(self.talk.exchanges)
        asked, kept = self.talk.undo(), len(before) - 1
        try:
            self.turn(asked)
        finally:
            if len(self.talk.exchanges) == kept:  # what cannot be answered again stays as it was
                self.talk.exchanges = before

    def _undo(self, rest: str) -> None:
        self.screen.say(f"Taken back: {self.talk.undo()}")

    def _reset(self, rest: str) -> None:
        self.talk.reset()
        self.screen.say("Forgotten; the next question is the first.")

    def _system(self, rest: str) -> None:
        if not rest:
            self.screen.say(f"system: {self.talk.system or '(none)'}")
            return
        self.talk.system = None if rest == "-" else rest
        self.talk.reset()
        self.screen.say(f"The next question is the first, with {'no' if rest == '-' else 'this'} system message.")

    def _set(self, rest: str) -> None:
        name, *value = rest.replace("=", " ", 1).split(maxsplit=1) if rest else [""]
        if rest and not value:
            raise RecipeError(f"/set {name} lacks a value: /set temperature 0.7.")
        if rest:
            self.sampling = self.sampling.changed(name, value[0].strip())
        self.screen.say(str(self.sampling))

    def _save(self, rest: str) -> None:
        if not rest:
            raise RecipeError("/save lacks the name of a file: /save talk.jsonl.")
        written = self.talk.save(Path(rest).expanduser())
        for path, rows in written:
            self.screen.say(f"{path}: {rows} row{'s' * (rows != 1)}. llm-rlhf data check {path}")

    def _help(self, rest: str) -> None:
        self.screen.explain(COMMANDS)
