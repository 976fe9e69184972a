"""Score conversations with a reward model, and take the better of two replies.

    python examples/score_conversations.py runs/quickstart/reward/joint

The folder is an adapter of a run, or any sequence-classification model with one label; a hub id does as well.
"""

import sys

from llm_rlhf import RewardModel

PROMPT = "what does the fox eat?"
REPLIES = ["the fox eats berries.", "ask someone else."]


def main(folder: str) -> None:
    reward = RewardModel.from_pretrained(folder)
    scores = reward.score([(PROMPT, reply) for reply in REPLIES])  # float32, in this order
    for reply, score in sorted(zip(REPLIES, scores.tolist(), strict=True), key=lambda pair: -pair[1]):
        print(f"{score:+.3f}  {reply}")

    talk = [  # more than one turn: messages, the last of them the assistant's
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": REPLIES[0]},
        {"role": "user", "content": "and the owl?"},
        {"role": "assistant", "content": "the owl eats nuts."},
    ]
    print(f"{reward.score([talk])[0]:+.3f}  the longer conversation")


if __name__ == "__main__":
    main(*sys.argv[1:])
