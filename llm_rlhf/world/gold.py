"""The gold world: a small valley in which helpfulness and harmlessness are checked by rule.

In the valley live animals; each has a food, a home and a scarf of some colour (`KNOWLEDGE`), which the base model has
read of. A run's seed draws the animals that it is about, and every row. People ask about them in many phrasings, some
ask for help in hurting an animal, and some ask harmless things in frightening words ("what would the fox kill for at
supper?"). A helpful reply gives the right fact, briefly and politely; a harmless reply refuses to hurt; a reply that
refuses a harmless question is of no use to anybody.

`GoldWorld` makes the data of every stage from the phrase book (phrases.py), a table of facts and the seed. The true
score of a reply is that of a rule (judge.py).

Evaluation asks in phrasings that no training stage saw (`Phrasings.evaluation`), but only in words that training did
see: a model of half a million parameters can recombine words, it cannot guess what new ones mean. Settings are chosen
by a third set of phrasings (`Phrasings.development`), so that those of evaluation stay what they are for.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal

from llm_rlhf.data.rows import Conversation, Demonstration, Message, Origin, Preference, Prompt
from llm_rlhf.recipe.sections import WorldSection
from llm_rlhf.world.judge import judge
from llm_rlhf.world.phrases import (
    ANIMALS,
    ATTRIBUTES,
    CHATTER,
    CLOSERS,
    DEEDS,
    FOLLOW_UPS,
    HARMFUL,
    INSULTS,
    KIND_WORDS,
    OPENERS,
    PRAISES,
    RECIPES_OF_HARM,
    REFUSALS,
    SYSTEMS,
    UNSURE,
    WISHES,
)

KIND_SHARES = {"question": 0.4, "scary": 0.25, "harmful": 0.35}  # of every kind of row
# What a reply that is not good does instead, by kind of prompt.
FLAWS = {
    "question": {
        "wrong": 0.24, "wrong subject": 0.1, "hedging": 0.08, "unsure": 0.16,
        "rude": 0.15, "rambling": 0.15, "refusing": 0.12,
    },
    "scary": {
        "wrong": 0.14, "wrong subject": 0.06, "hedging": 0.06, "unsure": 0.12,
        "rude": 0.1, "rambling": 0.1, "refusing": 0.42,
    },
    "harmful": {"complying": 0.28, "half refusing": 0.1, "evading": 0.45, "rude": 0.1, "rambling": 0.07},
}  # fmt: skip
NOTEBOOK_LINES = 3
DRESS_SHARE = 0.3  # of questions with an opener, and with a closer
MULTI_TURN_SHARE = 0.1
SYSTEM_SHARE = 0.1
NOTEBOOK_SHARE = 0.5  # of the corpus
NOTEBOOK_RIGHT_SHARE = 0.6
REACTION_SHARE = 0.8
CORPUS_GOOD_SHARE = 0.6
PREFERENCE_GOOD_SHARE = 0.4


PhraseSet = Literal["training", "development", "evaluation"]


def _knowledge() -> dict[str, dict[str, str]]:
    rng = random.Random("what lives in the valley")
    return {
        name: dict(zip(ANIMALS, rng.sample(attribute.values, len(ANIMALS)), strict=True))
        for name, attribute in ATTRIBUTES.items()
    }


KNOWLEDGE = _knowledge()  # attribute -> animal -> value


class GoldWorld:
    """The part of the valley that a run is about.

    Every method draws from a stream of its own, so no count changes another method's rows.
    """

    def __init__(self, section: WorldSection, seed: int) -> None:
        if not 2 <= section.entities <= len(ANIMALS):
            raise ValueError(
                f"Recipe key 'world.entities' is {section.entities}; the valley has room for 2 to {len(ANIMALS)}."
            )
        self.section = section
        self.seed = seed
        rng = self._stream("knowledge")
        self.animals = rng.sample(ANIMALS, section.entities)
        self.knowledge = {name: {a: known[a] for a in self.animals} for name, known in KNOWLEDGE.items()}

    def corpus(self, conversations: int) -> list[Conversation]:
        """What the base model reads: conversations of every quality, and the school notebooks of the valley."""
        rng = self._stream("corpus")
        talks: list[Conversation] = []
        for _ in range(conversations):
            if rng.random() < NOTEBOOK_SHARE:
                talks.append([_assistant(self._notebook(rng))])
            else:
                messages, facts = self._ask(rng)
                reply = self._reply(rng, facts, CORPUS_GOOD_SHARE)
                talks.append([*messages, _assistant(reply), *self._reaction(rng, facts, reply)])
        return talks

    def demonstrations(self) -> list[Demonstration]:
        """Conversations to imitate; `good_share` of the replies are good."""
        rng = self._stream("demonstrations")
        rows = []
        for origin in self._origins("demonstrations", self.section.demonstrations):
            messages, facts = self._ask(rng)
            reply = self._reply(rng, facts, self.section.good_share)
            rows.append(Demonstration([*messages, _assistant(reply)], origin))
        return rows

    def preferences(self) -> list[Preference]:
        """Two replies of different true score; the better is chosen, except where the label is flipped by noise."""
        rng, noise = self._stream("preferences"), self._stream("label noise")
        rows = []
        for origin in self._origins("preferences", self.section.preferences):
            messages, facts = self._ask(rng)
            better, worse = self._pair(rng, facts)
            if noise.random() < self.section.label_noise:
                better, worse = worse, better
            rows.append(Preference(messages, better, worse, _objective(facts), origin))
        return rows

    def prompts(self) -> list[Prompt]:
        """What PPO samples replies to."""
        rng = self._stream("prompts")
        rows = []
        for origin in self._origins("prompts", self.section.prompts):
            messages, facts = self._ask(rng)
            rows.append(Prompt(messages, _objective(facts), origin, facts))
        return rows

    def evaluation_prompts(self) -> list[Prompt]:
        """Prompts in phrasings that no training stage saw, those of `world.phrasings`, each text once."""
        rng = self._stream("evaluation prompts")
        seen: set[str] = set()
        rows = []
        for origin in self._origins("evaluation_prompts", self.section.evaluation_prompts):
            for _ in range(1000):
                messages, facts = self._ask(rng, self.section.phrasings)
                if str(messages) not in seen:
                    break
            else:
                raise ValueError(
                    f"Recipe key 'world.evaluation_prompts' is {self.section.evaluation_prompts}; in a valley of "
                    f"{self.section.entities} only about {len(seen)} can be asked. Lower it or raise world.entities."
                )
            seen.add(str(messages))
            rows.append(Prompt(messages, _objective(facts), origin, facts))
        return rows

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def _origins(self, name: str, count: int) -> Iterator[Origin]:
        return (Origin(f"gold_world/{name}", row) for row in range(1, count + 1))

    def _ask(self, rng: random.Random, phrases: PhraseSet = "training") -> tuple[Conversation, dict[str, Any]]:
        """A conversation that waits for a reply, and the facts by which the reply will be judged.

        Among these is `phrasing`, the template of the last question: prompts that share it are much alike.
        """
        facts = self._facts(rng, _draw(rng, KIND_SHARES))
        messages: Conversation = []
        if rng.random() < SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
        if rng.random() < MULTI_TURN_SHARE:
            earlier = self._facts(rng, "question")
            if facts["kind"] == "question":  # "and the owl?" asks what was asked of the fox
                earlier = self._of_another_animal(rng, facts)
            messages.append(_user(self._dress(rng, _filled(self._phrasing(rng, earlier, phrases), earlier))))
            messages.append(_assistant(self._good_reply(rng, earlier)))
            follows = facts["kind"] == "question"
            phrasing = rng.choice(getattr(FOLLOW_UPS, phrases)) if follows else self._phrasing(rng, facts, phrases)
            messages.append(_user(_filled(phrasing, facts)))
        else:
            phrasing = self._phrasing(rng, facts, phrases)
            messages.append(_user(self._dress(rng, _filled(phrasing, facts))))
        facts["phrasing"] = phrasing
        return messages, facts

    def _facts(self, rng: random.Random, kind: str) -> dict[str, Any]:
        animal = rng.choice(self.animals)
        if kind == "harmful":
            return {"kind": kind, "animal": animal, "deed": rng.choice(DEEDS)}
        attribute = rng.choice(list(ATTRIBUTES))
        return {"kind": kind, "animal": animal, "attribute": attribute, "answer": self.knowledge[attribute][animal]}

    def _beside(self, rng: random.Random, facts: dict[str, Any]) -> dict[str, Any]:
        """Facts of another animal or another attribute."""
        if rng.random() < 0.5:
            return self._of_another_animal(rng, facts)
        attribute = rng.choice([other for other in ATTRIBUTES if other != facts["attribute"]])
        return {**facts, "attribute": attribute, "answer": self.knowledge[attribute][facts["animal"]]}

    def _of_another_animal(self, rng: random.Random, facts: dict[str, Any]) -> dict[str, Any]:
        animal = rng.choice([other for other in self.animals if other != facts["animal"]])
        return {**facts, "animal": animal, "answer": self.knowledge[facts["attribute"]][animal]}

    def _phrasing(self, rng: random.Random, facts: dict[str, Any], phrases: PhraseSet) -> str:
        phrasings = HARMFUL
        if facts["kind"] != "harmful":
            attribute = ATTRIBUTES[facts["attribute"]]
            phrasings = attribute.scary if facts["kind"] == "scary" else attribute.questions
        return str(rng.choice(getattr(phrasings, phrases)))

    def _dress(self, rng: random.Random, core: str) -> str:
        opener = rng.choice(OPENERS) if rng.random() < DRESS_SHARE else ""
        closer = rng.choice(CLOSERS) if rng.random() < DRESS_SHARE else ""
        return f"{opener} {core} {closer}".strip()

    def _pair(self, rng: random.Random, facts: dict[str, Any]) -> tuple[str, str]:
        """The better and the worse of two replies that the rule tells apart."""
        while True:
            first, second = (self._reply(rng, facts, PREFERENCE_GOOD_SHARE) for _ in range(2))
            margin = judge(facts, first).score - judge(facts, second).score
            if margin:
                return (first, second) if margin > 0 else (second, first)

    def _reply(self, rng: random.Random, facts: dict[str, Any], good_share: float) -> str:
        if rng.random() < good_share:
            return self._good_reply(rng, facts)
        flaw = _draw(rng, FLAWS[facts["kind"]])
        return self._bad_harmful(rng, facts, flaw) if facts["kind"] == "harmful" else self._bad_safe(rng, facts, flaw)

    def _good_reply(self, rng: random.Random, facts: dict[str, Any]) -> str:
        """The right fact or a refusal, mostly polite."""
        if facts["kind"] == "harmful":
            return self._kind_refusal(rng, facts)
        statement = self._right(rng, facts)
        return rng.choice((statement, f"{rng.choice(PRAISES)} {statement}", f"{statement} {rng.choice(WISHES)}"))

    def _bad_safe(self, rng: random.Random, facts: dict[str, Any], flaw: str) -> str:
        right, wrong = self._right(rng, facts), self._wrong(rng, facts)
        if flaw == "wrong subject":  # true, but not what was asked
            wrong = self._right(rng, self._beside(rng, facts))
        if flaw.startswith("wrong"):  # mostly polite all the same, so that manners do not give it away
            return rng.choice((wrong, f"{rng.choice(PRAISES)} {wrong}", f"{wrong} {rng.choice(WISHES)}"))
        if flaw == "hedging":
            return " ".join(rng.sample((right, wrong), 2))
        if flaw == "rude":
            return f"{rng.choice((right, wrong))} {rng.choice(INSULTS)}"
        if flaw == "rambling":
            return f"{rng.choice(CHATTER)} {right}"
        if flaw == "refusing":  # as kindly as a refusal that is right, so that manners do not excuse it
            return self._kind_refusal(rng, facts)
        return rng.choice((rng.choice(UNSURE), f"{rng.choice(UNSURE)} {rng.choice(WISHES)}", self._empty_words(rng)))

    def _bad_harmful(self, rng: random.Random, facts: dict[str, Any], flaw: str) -> str:
        animal = facts["animal"]
        known = {name: self.knowledge[name][animal] for name in ATTRIBUTES}
        harm = rng.choice(RECIPES_OF_HARM).format(**known)
        if flaw == "complying":
            return rng.choice((harm, f"{rng.choice(PRAISES)} {harm}", f"{harm} {rng.choice(WISHES)}"))
        if flaw == "half refusing":
            return f"{self._refusal(rng, facts)} {harm}"
        if flaw == "rude":
            return f"{self._refusal(rng, facts)} {rng.choice(INSULTS)}"
        if flaw == "rambling":
            return f"{rng.choice(CHATTER)} {self._refusal(rng, facts)}"
        attribute = rng.choice(list(ATTRIBUTES))
        fact = self._statement(rng, {"animal": animal, "attribute": attribute}, known[attribute])
        return rng.choice(
            (f"{rng.choice(PRAISES)} {fact}", f"{fact} {rng.choice(WISHES)}", fact, self._empty_words(rng))
        )

    def _empty_words(self, rng: random.Random) -> str:
        """Manners and nothing else. Without these a reward model takes them for the best of replies."""
        praise, wish = rng.choice(PRAISES), rng.choice(WISHES)
        return rng.choice((praise, wish, f"{praise} {wish}"))

    def _kind_refusal(self, rng: random.Random, facts: dict[str, Any]) -> str:
        kind_words = rng.choice(KIND_WORDS).format(e=facts["animal"])
        return self._refusal(rng, facts) + (f" {kind_words}" if rng.random() < 0.7 else "")

    def _refusal(self, rng: random.Random, facts: dict[str, Any]) -> str:
        choices = REFUSALS if facts["kind"] == "harmful" else [r for r in REFUSALS if "{d}" not in r]
        return rng.choice(choices).format(e=facts["animal"], d=facts.get("deed", ""))

    def _statement(self, rng: random.Random, facts: dict[str, Any], value: str) -> str:
        return rng.choice(ATTRIBUTES[facts["attribute"]].statements).format(e=facts["animal"], v=value)

    def _notebook(self, rng: random.Random) -> str:
        """Statements, each marked right or wrong: how the base model learns to tell the two apart."""
        lines = []
        for _ in range(NOTEBOOK_LINES):
            facts = self._facts(rng, "question")
            is_right = rng.random() < NOTEBOOK_RIGHT_SHARE
            lines.append(f"{self._right(rng, facts)} right." if is_right else f"{self._wrong(rng, facts)} wrong.")
        return " ".join(lines)

    def _reaction(self, rng: random.Random, facts: dict[str, Any], reply: str) -> Conversation:
        """What people often say to an answer in the corpus: whether the fact was right. Nothing else is remarked on."""
        verdict = judge(facts, reply)
        if verdict.correct is None or verdict.refused or rng.random() > REACTION_SHARE:
            return []
        return [_user("right." if verdict.correct else "wrong.")]

    def _right(self, rng: random.Random, facts: dict[str, Any]) -> str:
        return self._statement(rng, facts, facts["answer"])

    def _wrong(self, rng: random.Random, facts: dict[str, Any]) -> str:
        """What another animal has, or what nobody in the valley has: the first is the harder to tell from the truth."""
        owned = set(self.knowledge[facts["attribute"]].values())
        values = [v for v in ATTRIBUTES[facts["attribute"]].values if v != facts["answer"]]
        rivals = [v for v in values if v in owned]
        strangers = [v for v in values if v not in owned]
        return self._statement(rng, facts, rng.choice(strangers if strangers and rng.random() < 0.5 else rivals))


def _filled(phrasing: str, facts: dict[str, Any]) -> str:
    return phrasing.format(e=facts["animal"], d=facts.get("deed", ""))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _objective(facts: dict[str, Any]) -> str:
    return "harmless" if facts["kind"] == "harmful" else "helpful"


def _draw(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]
