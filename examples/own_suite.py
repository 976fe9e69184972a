"""A suite of one's own: a file of prompts, and a function that gives every reply a number.

In the repository's root:

    llm-rlhf evaluate runs/hh --own lists=data/evaluation/helpful.jsonl,examples.own_suite:lists,neither

or in a recipe:

    evaluate:
      own:
        - {name: lists, prompts: [{source: data/evaluation/helpful.jsonl}], function: "examples.own_suite:lists",
           good: neither}

The report then has `lists` of both policies and `lists_gain`, with intervals; yes and no become shares.
"""

import re

Message = dict[str, str]
BULLET = re.compile(r"^\s*(?:[-*]|\d+\.)\s", re.MULTILINE)


def lists(prompts: list[list[Message]], replies: list[str]) -> list[bool | None]:
    """Whether a reply is a list of points; None, which is left out, where a list was asked for."""
    return [
        None if "list" in prompt[-1]["content"].lower() else len(BULLET.findall(reply)) >= 3
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
