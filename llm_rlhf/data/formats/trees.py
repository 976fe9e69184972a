"""Conversation trees with ranks (Open-Assistant), nested or one message a row, as pairs, demonstrations and prompts.

- Pairs: every prompter message with at least two ranked replies, the way from the root as prompt; rank 0 is the best.
- Demonstrations: the best reply at every prompter message that is reached through best replies only. Each is trained
  on once, as the end of its own conversation; where nobody ranked, the only reply is the best.
- Prompts: the way from the root to every prompter message.

A message that was deleted or failed its review is not used, nor is what was said below it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_rlhf.data.bounds import MOST_COMPARED, MOST_MESSAGES
from llm_rlhf.data.cells import as_number, thumb
from llm_rlhf.data.checks import BadRow, check_prompt, check_text, extract, is_blank
from llm_rlhf.data.formats.conversations import row_of
from llm_rlhf.data.formats.rankings import TOO_MANY, Rated, chosen_pairs
from llm_rlhf.data.formats.turns import pair_of
from llm_rlhf.data.rows import Conversation, Demonstration, Message, Preference, Prompt, RawRow

Kind = Literal["preferences", "demonstrations", "prompts", "ratings"]

ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}
UNRANKED = "reply without a rank"
ALONE = "no other ranked reply to compare with"
# Why a message that can be used is in no row, by what the rows are.
NOT_NEEDED = {
    "preferences": "no two ranked replies follow",
    "demonstrations": "not on a path of best replies",
    "prompts": "reply that no prompt follows",
}


@dataclass
class Node:
    """One message; `raw` is the row it came from, which it shares with the others where trees are nested."""

    raw: RawRow
    fields: dict[str, Any]
    replies: list["Node"] = field(default_factory=list)


@dataclass
class Grown:
    """What became of one tree: rows with the messages they use, and why the others are in none."""

    rows: list[tuple[Preference | Demonstration | Prompt, list[Node]]] = field(default_factory=list)
    unused: list[tuple[Node, BadRow]] = field(default_factory=list)  # all messages that are in no row

    def reason(self) -> BadRow:
        """Why a tree gave nothing: the reason most of its messages have."""
        reasons = [bad.reason for _, bad in self.unused]
        most = max(reasons, key=reasons.count)
        return next(bad for _, bad in self.unused if bad.reason == most)


def nested_tree(raw: RawRow) -> Node:
    """The tree of a row that holds it whole."""
    row = row_of(raw)
    root = Node(raw, row["prompt"] if isinstance(row.get("prompt"), dict) else row)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        replies = node.fields.get("replies")
        if replies is None:
            continue
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise BadRow("wrong type", f"replies is no list of messages: {extract(replies)}")
        node.replies = [Node(raw, reply) for reply in replies]
        waiting += node.replies
    return root


def flat_trees(raws: Iterable[RawRow]) -> Iterator[Node | tuple[RawRow, BadRow]]:
    """The roots of trees that come one message a row, and the rows that belong to none."""
    nodes: dict[str, Node] = {}
    for raw in raws:
        try:
            if isinstance(raw.fields, BadRow):
                raise raw.fields
            key = check_text(row_of(raw).get("message_id"), "message_id")
            if key in nodes:
                raise BadRow("message_id stands twice", extract(key))
        except BadRow as bad:
            yield raw, bad
            continue
        nodes[key] = Node(raw, raw.fields)
    reached = []
    for node in nodes.values():
        parent = node.fields.get("parent_id")
        if parent is None:
            reached.append(node)
        elif isinstance(parent, str) and parent in nodes:
            nodes[parent].replies.append(node)
    yield from reached
    known = set()
    while reached:
        node = reached.pop()
        known.add(id(node))
        reached += node.replies
    for node in nodes.values():
        if id(node) not in known:
            yield node.raw, BadRow("no way up to a first message", f"parent_id {extract(node.fields.get('parent_id'))}")


def grow(root: Node, kind: Kind, objective: str, which: str, repairs: set[str]) -> Grown:
    """The rows of one tree."""
    grown = Grown()
    reasons: dict[int, BadRow] = {}
    everything: list[Node] = []
    waiting = [(root, [], True)]  # type: list[tuple[Node, list[Node], bool]]
    while waiting:
        node, way, best = waiting.pop()
        everything.append(node)
        try:
            if len(way) >= MOST_MESSAGES:
                raise BadRow("conversation too long", f"more than {MOST_MESSAGES} messages from the first one down")
            turns = [_turn(other) for other in way] + [_turn(node)]
        except BadRow as bad:
            reasons[id(node)] = bad
            below = list(node.replies)
            while below:
                lost = below.pop()
                everything.append(lost)
                reasons[id(lost)] = BadRow("below a message that cannot be used", bad.reason)
                below += lost.replies
            continue
        way = [*way, node]
        good = [reply for reply in node.replies if _is_good(reply)]
        favourite = _best(good) if turns[-1]["role"] == "user" else None
        if turns[-1]["role"] == "user":
            try:
                grown.rows += _rows_at(
                    turns, way, good, favourite if best else None, kind, objective, which, repairs, reasons
                )
            except BadRow as bad:
                reasons.setdefault(id(node), bad)
        for reply in reversed(node.replies):
            is_best = best and (turns[-1]["role"] == "assistant" or reply is favourite)
            waiting.append((reply, way, is_best))
    used = {id(node) for _, nodes in grown.rows for node in nodes}
    grown.unused = [(n, reasons.get(id(n), BadRow(NOT_NEEDED[kind]))) for n in everything if id(n) not in used]
    return grown


def _rows_at(
    turns: Conversation,
    way: list[Node],
    replies: list[Node],
    favourite: Node | None,
    kind: Kind,
    objective: str,
    which: str,
    repairs: set[str],
    reasons: dict[int, BadRow],
) -> list[tuple[Preference | Demonstration | Prompt, list[Node]]]:
    """The rows at one prompter message."""
    origin = way[-1].raw.origin
    if kind == "prompts":
        return [(Prompt(check_prompt(turns, repairs), objective, origin), way)]
    if kind == "demonstrations":
        if favourite is None:
            return []
        prompt = check_prompt(turns, repairs)
        return [(Demonstration([*prompt, _turn(favourite)], origin), [*way, favourite])]
    ranked = [reply for reply in replies if _rank(reply) is not None]
    places = {id(reply): number for number, reply in enumerate(replies, 1)}
    for reply in replies:
        if _rank(reply) is None:
            reasons[id(reply)] = BadRow(UNRANKED)
    if len(ranked) < 2:
        for reply in ranked:
            reasons[id(reply)] = BadRow(ALONE)
        return []
    if which == "all" and len(ranked) > MOST_COMPARED:
        for reply in ranked:
            reasons[id(reply)] = BadRow(TOO_MANY, f"{len(ranked)}, over {MOST_COMPARED}; set pairs: best_worst")
        return []
    rated = [Rated(_turn(reply), -float(_rank(reply) or 0), number) for number, reply in enumerate(ranked)]
    account = RawRow(origin, None)
    rows: list[tuple[Preference | Demonstration | Prompt, list[Node]]] = []
    for better, worse in chosen_pairs(rated, which, account):
        nodes = [ranked[better.position], ranked[worse.position]]
        try:
            prompt, chosen, rejected = pair_of([*turns, better.reply], [*turns, worse.reply], repairs)
        except BadRow as bad:
            for node in nodes:
                reasons[id(node)] = bad
            continue
        position = places[id(nodes[0])]
        gap = better.score - worse.score
        pair = Preference(prompt, chosen, rejected, objective, origin, margin=gap, position=position)
        rows.append((pair, [*way, *nodes]))
    for reply in ranked:
        for reason in account.parts:
            reasons.setdefault(id(reply), BadRow(reason))
    return rows


def _turn(node: Node) -> Message:
    """The message as a turn; BadRow where it cannot be used."""
    if thumb(node.fields.get("deleted")):
        raise BadRow("deleted message")
    if thumb(node.fields.get("review_result")) is False:
        raise BadRow("message failed its review")
    role = check_text(node.fields.get("role"), "role")
    if role not in ROLES:
        raise BadRow("unknown role", f"{extract(role)}; known: {', '.join(ROLES)}")
    text = check_text(node.fields.get("text"), "text")
    if is_blank(text):
        raise BadRow("empty turn")
    return {"role": ROLES[role], "content": text}


def _is_good(node: Node) -> bool:
    try:
        return _turn(node)["role"] == "assistant"
    except BadRow:
        return False


def _rank(node: Node) -> int | None:
    rank = node.fields.get("rank")
    number = None if isinstance(rank, bool) else as_number(rank)  # tables have floats and text in place of numbers
    return int(number) if number is not None and number.is_integer() else None


def _best(replies: list[Node]) -> Node | None:
    """The reply of the lowest rank, or the only one; None where several stand unranked."""
    ranks = {id(reply): rank for reply in replies if (rank := _rank(reply)) is not None}
    if ranks:
        return min((reply for reply in replies if id(reply) in ranks), key=lambda reply: ranks[id(reply)])
    return replies[0] if len(replies) == 1 else None
