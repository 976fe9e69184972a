"""What a chat template does to conversations, found by letting it write some."""

from typing import Any, NamedTuple

from llm_rlhf.data.rows import Message
from llm_rlhf.models.encoding import encode_demonstration
from llm_rlhf.models.rendering import RefusedByTemplateError, render, special_tokens_in
from llm_rlhf.models.thoughts import KEY, closes_thought, opens_thought, thought_marks

_ASK: Message = {"role": "user", "content": "The question."}
_REPLY: Message = {"role": "assistant", "content": "The reply."}
_SYSTEM: Message = {"role": "system", "content": "The rule."}


class TemplateFacts(NamedTuple):
    """A phrase each."""

    history: str  # earlier replies of the assistant, once others follow
    thoughts: str  # the thought before the last reply
    prompt: str  # what the generation prompt does about a thought
    system: str  # a system turn

    def sentences(self) -> list[str]:
        """What of it a person should know who trains on conversations; nothing where all is written as it stands."""
        told = {
            "history": (self.history, ("kept",)),
            "thoughts": (self.thoughts, ("as they stand",)),
            "the generation prompt": (self.prompt, ("says nothing of thoughts",)),
            "system turns": (self.system, ("a turn of its own",)),
        }
        return [f"{what}: {fact}" for what, (fact, usual) in told.items() if fact not in usual]


def template_facts(tokenizer: Any) -> TemplateFacts:
    """What the tokenizer's template does.

    Raises:
        RefusedByTemplateError: where it refuses a question, a reply and a question.
    """
    marks = thought_marks(tokenizer)
    (prompt,) = render(tokenizer, [[_ASK]], add_generation_prompt=True)
    before = "says nothing of thoughts"
    if opens_thought(prompt.text, marks):
        before = f"opens a thought with {marks.opening}"
    elif closes_thought(prompt.text, marks):
        before = f"ends the thought with {marks.closing}, so that replies have none"
    written = {
        "key": f"written between {marks.opening} and {marks.ending}{marks.closing}",
        "text": "as they stand",
        "nothing": f"taken out, so that they are written between {marks.opening} and {marks.closing} here",
    }
    return TemplateFacts(_history(tokenizer), written[marks.writes], before, _system(tokenizer))


def _history(tokenizer: Any) -> str:
    thinking = {**_REPLY, KEY: "The thought."}
    several = [len(encode_demonstration(tokenizer, [_ASK, turn, _ASK, turn], [1, 3])) for turn in (_REPLY, thinking)]
    return {(1, 1): "kept", (1, 2): "kept, but for thoughts"}.get((several[0], several[1]), "rewritten")


def _system(tokenizer: Any) -> str:
    try:
        whole, without = render(tokenizer, [[_SYSTEM, _ASK], [_ASK]])
    except RefusedByTemplateError:
        return "refused"
    if _SYSTEM["content"] not in whole.text:
        return "left out"
    before, _, behind = whole.text.partition(_SYSTEM["content"])
    opening = [token for token in special_tokens_in(tokenizer, before) if token != tokenizer.bos_token]
    if not opening or not special_tokens_in(tokenizer, behind.partition(_ASK["content"])[0]):
        return "put in front, without a turn of its own"
    alike = len(special_tokens_in(tokenizer, whole.text)) == len(special_tokens_in(tokenizer, without.text))
    return "a turn of its own; where there is none, the template writes one" if alike else "a turn of its own"
