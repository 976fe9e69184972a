"""A control task in words: drive a car with a weak engine up a hill, learned by a reward and learned from comparisons.

    python examples/mountain_car/car.py                   # the base model and the data, into runs/mountain-car
    llm-rlhf run examples/mountain_car/reward.yaml        # PPO by `progress`, a number for every ride
    llm-rlhf run examples/mountain_car/people.yaml        # PPO by a reward model of 8,000 comparisons of rides

The prompt says where the car stands in the valley; the reply is a plan, eight times left, right or wait, each held for
25 steps of the simulation. The engine is too weak to climb straight up: a good plan swings. The road and the car are
those of Moore (1990), with the constants of the usual MountainCar.

The one who compares two rides looks for the flag; of two rides that reach it, or of two that do not, they prefer the
one that went higher with fewer pushes, and are wrong one time in ten.
"""

import json
import math
import random
import sys
from pathlib import Path

from llm_rlhf.world.base_model import make_tiny_base

Message = dict[str, str]
FORCES = {"left": -1, "wait": 0, "right": 1}
ACTIONS, HELD = 8, 25  # a plan's length, and steps that each of its words is held for
FLAG, WALL, VALLEY, TOP_SPEED = 0.5, -1.2, -math.pi / 6, 0.07


def ride(position: float, plan: str) -> tuple[bool, float, int]:
    """Whether the flag was reached, how high the car came on its hill (the valley is -1, the top 1), and the pushes."""
    velocity, highest, pushes = 0.0, -1.0, 0
    for word in plan.split()[:ACTIONS]:
        force = FORCES.get(word.strip(".,"), 0)
        pushes += abs(force)
        for _ in range(HELD):
            velocity = max(-TOP_SPEED, min(TOP_SPEED, velocity + 0.001 * force - 0.0025 * math.cos(3 * position)))
            position += velocity
            if position <= WALL:
                position, velocity = WALL, 0.0
            if position > VALLEY:  # on the hill with the flag
                highest = max(highest, math.sin(3 * position))
            if position >= FLAG:
                return True, 1.0, pushes
    return False, highest, pushes


def rides(prompts: list[list[Message]], replies: list[str]) -> list[tuple[bool, float, int]]:
    """What became of each plan, started where its prompt says."""
    starts = [float(prompt[-1]["content"].split()[-1]) for prompt in prompts]
    return [ride(start, reply) for start, reply in zip(starts, replies, strict=True)]


def progress(prompts: list[list[Message]], completions: list[list[Message]], **columns: object) -> list[float]:
    """The reward: how high the car came, 1 more for the flag, and a little less for every push."""
    replies = [completion[-1]["content"] for completion in completions]
    return [highest + reached - 0.02 * pushes for reached, highest, pushes in rides(prompts, replies)]


def flag(prompts: list[list[Message]], replies: list[str]) -> list[bool]:
    """Whether each plan reaches the flag: what both policies are judged by."""
    return [reached for reached, _, _ in rides(prompts, replies)]


def question(position: float) -> list[Message]:
    return [{"role": "user", "content": f"The car stands at {position:.4f}"}]


def plan(draw: random.Random) -> str:
    """What people try who have not driven this car before: half of them anything, the others to swing, with slips."""
    words = draw.choices(list(FORCES), k=ACTIONS)
    if draw.random() < 0.5:
        side, left = draw.choice(["left", "right"]), draw.choice([1, 2])
        for i in range(ACTIONS):
            words[i] = side if draw.random() < 0.7 else words[i]
            left -= 1
            if not left:
                side, left = "left" if side == "right" else "right", draw.choice([1, 2])
    return " ".join(words)


def better(position: float, plans: tuple[str, str], draw: random.Random) -> int:
    """Which of two plans a person calls better, having watched both rides: 0 or 1."""
    liked = [(reached, highest - 0.02 * pushes) for reached, highest, pushes in (ride(position, p) for p in plans)]
    choice = int(liked[1] > liked[0])
    return 1 - choice if draw.random() < 0.1 else choice


def make(folder: Path, pairs: int = 8000, prompts: int = 600, seed: int = 0) -> None:
    """Write the base model, which plans as `plan` does, and the rows of both recipes."""
    draw = random.Random(seed)

    def start() -> float:
        return -0.6 + 0.0002 * draw.randrange(1000)  # the evaluation asks of positions between these

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    shown = [[*question(start()), {"role": "assistant", "content": plan(draw)}] for _ in range(2000)]
    sizes = {"vocabulary": 320, "layers": 2, "width": 64, "context": 64}
    make_tiny_base(shown, folder / "base", seed, **sizes, epochs=3, initializer_range=0.2)
    compared = []
    for _ in range(pairs):
        position, plans = start(), (plan(draw), plan(draw))
        best = better(position, plans, draw)
        compared.append({"prompt": question(position), "chosen": plans[best], "rejected": plans[1 - best]})
    write("comparisons.jsonl", compared)
    write("prompts.jsonl", [{"prompt": question(start())} for _ in range(prompts)])
    write("evaluation_prompts.jsonl", [{"prompt": question(-0.5999 + 0.002 * i)} for i in range(100)])


if __name__ == "__main__":
    make(Path(*(sys.argv[1:] or ["runs/mountain-car"])))
