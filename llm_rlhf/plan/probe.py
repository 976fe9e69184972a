"""How long a run would take: its stages tried for a few steps on the device, on models of the base's shape.

The recipe is run by `llm-rlhf run` itself, twice: on random weights of the base's shape with 2 and with 8 layers (a
shallower base as it is, once). The time of a step is taken for a part that is always there and a part for each layer,
so that two depths tell that of the whole model. Rows are the recipe's own; models of random weights hardly stop, so
that replies have their full length and sampling takes the most that it can.
"""

import copy
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

from llm_rlhf.ahead import TRAINED
from llm_rlhf.errors import RecipeError, RunError
from llm_rlhf.evaluation.suites.refusals import shipped_prompts
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.models.base import base_tokens
from llm_rlhf.plan.forecast import SNAPSHOTS, Forecast, StagePlan
from llm_rlhf.plan.rows import Lists
from llm_rlhf.ppo.generation import compiles
from llm_rlhf.recipe.loading import UNTRAINED, sampling, trainer_config
from llm_rlhf.recipe.sections import ONLINE, EvaluateSection, Recipe, stage_options, trains_reward
from llm_rlhf.reward.adapters import whole_rewards
from llm_rlhf.run_folder import read_json
from llm_rlhf.training import METRICS

DEPTHS = (2, 8)  # layers
ROWS = 3000  # of each source, at most
STEPS = 6  # of a trainer that learns from rows; the first two are not counted
ROLLOUTS = 4  # of one that samples; the first is not counted, in which kernels are chosen and steps compiled
TRIED_BATCHES = 4  # of prompts of an evaluation, so that loading and reporting weigh little beside them
SAID = 2000  # characters of what a failed try has said that are shown


@dataclass(frozen=True)
class Tried:
    """Seconds of one try.

    Attributes:
        step: of an optimizer step, by stage; a rollout's share with it.
        evaluation: of an evaluation in training, by stage.
        reply: of a reply that the report's evaluation samples; 0 where there is none.
        report: of all else that it does.
    """

    step: dict[str, float]
    evaluation: dict[str, float]
    reply: float = 0.0
    report: float = 0.0

    def deeper(self, other: "Tried", layers: tuple[int, int], depth: int) -> "Tried":
        """Of a model of so many layers, by what two tries of fewer say."""

        def of(one: float, two: float) -> float:
            return two + max(0.0, two - one) / (layers[1] - layers[0]) * (depth - layers[1])

        return Tried(
            {stage: of(self.step[stage], other.step[stage]) for stage in other.step},
            {stage: of(self.evaluation[stage], other.evaluation[stage]) for stage in other.evaluation},
            of(self.reply, other.reply),
            of(self.report, other.report),
        )


def check_can_try(recipe: Recipe, stages: Sequence[str]) -> None:
    """What a try cannot be made of.

    Raises:
        RecipeError: naming the key.
    """
    if recipe.model.trust_remote_code:
        raise RecipeError(
            "Recipe key 'model.trust_remote_code' is set, but --time cannot make models of the shape of a base with "
            "code of its own; leave --time out."
        )
    if recipe.reward is not None and not trains_reward(recipe) and not whole_rewards(recipe):
        raise RecipeError(
            "Recipe key 'reward.model' names an adapter, which fits no model of fewer layers; leave --time out, or "
            "name a whole reward model."
        )
    if not any(stage in TRAINED for stage in stages):
        raise RecipeError("The recipe trains nothing, so that --time has nothing to try; leave it out.")


def seconds_of(
    recipe: Recipe, forecast: Forecast, plans: Sequence[StagePlan], say: Callable[[str], None]
) -> dict[str, float]:
    """Seconds that each stage would take here, by the stage; those that take none of weight are not in it.

    Raises:
        RecipeError: from `check_can_try`.
        RunError: where a try fails, with the end of what it said.
    """
    check_can_try(recipe, [plan.stage for plan in plans])
    compiled = _compiles(recipe, plans, forecast.device)
    depth = forecast.config.get_text_config().num_hidden_layers
    of_world = recipe.world is not None
    depths = [depth] if of_world or depth <= DEPTHS[1] else list(DEPTHS)
    with tempfile.TemporaryDirectory() as folder:
        tries = []
        for layers in depths:
            say(f"trying a few steps of every stage with {layers} of {depth} layers ...")
            place = Path(folder) / str(layers)
            place.mkdir()
            if not of_world:
                make_base(forecast, recipe, layers, place / "base")
            tries.append(_try(recipe, place, None if of_world else place / "base", compiled))
    found = tries[0] if len(tries) == 1 else tries[0].deeper(tries[1], DEPTHS, depth)
    told = ((plan.stage, _seconds(recipe, forecast.lists, plan, found)) for plan in plans)
    return {stage: seconds for stage, seconds in told if seconds is not None}


def shallow(config: Any, layers: int) -> Any:
    """The configuration with so many of its layers, the first; what it says of each layer is cut likewise."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return found


def make_base(forecast: Forecast, recipe: Recipe, layers: int, folder: Path) -> None:
    """A model of the base's shape with fewer layers and random weights, with the base's tokenizer."""
    torch.manual_seed(0)
    config, dtype = shallow(forecast.config, layers), getattr(torch, recipe.model.dtype)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    base_tokens(forecast.base, recipe.model).save_pretrained(folder)


def _try(recipe: Recipe, place: Path, base: Path | None, compiled: bool) -> Tried:
    """A few steps of every stage, in a process of its own, as a run is."""
    path, run = place / "recipe.yaml", place / "run"
    path.write_text(yaml.safe_dump(_shortened(recipe, run, base, compiled)), encoding="utf-8")
    asked = [sys.executable, "-m", "llm_rlhf", "run", str(path)]
    done = subprocess.run(asked, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout)[-SAID:].strip()
        raise RunError(f"Trying the recipe for its time failed (exit code {done.returncode}):\n{said}")
    step, evaluation = {}, {}
    middle = (
        median if recipe.model.compile else fmean
    )  # a graph that is not made before the third step is no step's time
    for stage in (stage for stage in TRAINED if (run / stage).is_dir()):
        logs = sorted((run / stage).glob(f"*/{METRICS}")) or [run / stage / METRICS]
        gaps = [gap for log in logs if log.is_file() for gap in _gaps(read_json_lines(log), stage)]
        if found := [gap.seconds / gap.steps for gap in gaps if gap.steps]:
            step[stage] = middle(found)
        if found := [gap.seconds for gap in gaps if not gap.steps]:
            evaluation[stage] = middle(found)
    return Tried(step, evaluation, *_evaluation(run))


def _evaluation(run: Path) -> tuple[float, float]:
    """Seconds of a reply, and of all else, in the report's evaluation of a try.

    Replies are kept as they are sampled: between the last of one policy and of the next lies the sampling of the next.
    """
    manifest = read_json(run / "evaluate" / "manifest.json")
    kept = sorted(path.stat().st_mtime for path in (run / "cache").glob("*.jsonl"))
    if manifest is None or len(kept) < 2:
        return 0.0, 0.0
    sampling_one = kept[-1] - kept[-2]
    answered = len(read_json_lines(run / "evaluate" / "replies.jsonl"))
    return sampling_one / answered, max(0.0, manifest["seconds"] - 2 * sampling_one)


@dataclass(frozen=True)
class _Gap:
    seconds: float
    steps: int  # 0: an evaluation


def _gaps(lines: Sequence[dict[str, Any]], stage: str) -> Iterator[_Gap]:
    """Between two lines of a stage's log: steps where the second tells of a loss, else an evaluation."""
    known = [line for line in lines if "loss" in line or any(key.startswith("eval_") for key in line)]
    warm = 1 if stage in ONLINE else 2
    learned = 0
    for before, line in itertools.pairwise(known):
        learned += "loss" in before
        if learned >= warm:
            yield _Gap(line["time"] - before["time"], line["step"] - before["step"] if "loss" in line else 0)


def _environment() -> dict[str, str]:
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _shortened(recipe: Recipe, run: Path, base: Path | None, compiled: bool) -> dict[str, Any]:
    """The recipe of a try: the same shapes, few steps, nothing saved on the way."""
    tree: dict[str, Any] = json.loads(json.dumps(recipe.as_dict()))
    tree |= {"name": "try", "output_dir": str(run), "rounds": None, "report_to": [], "gate": {}}
    if base is not None:
        tree["model"]["base"] = str(base)
    for sources in (tree.get("data") or {}).values():
        for source in sources if isinstance(sources, list) else []:
            source["limit"] = min(source.get("limit") or ROWS, ROWS)
    for stage in TRAINED:
        if tree.get(stage) is not None and (stage != "reward" or trains_reward(recipe)):
            tree[stage] |= {"save_strategy": "no", **_few_steps(recipe, stage, run)}
    if compiled:
        tree["ppo"]["decoding"] = "compiled"
    if _can_evaluate(recipe):  # also where the recipe does not: what a reply takes is known by it
        tree["evaluate"] = (tree.get("evaluate") or {}) | {
            "prompts": TRIED_BATCHES * _evaluation_section(recipe).batch_size, "suites": [], "judge": None,
            "reference": None, "own": [], "benchmarks": [], "hhh": [], "pairs": [], "resamples": 100,
            "decoding": "plain",  # a minute of compiling would be taken for the time of a few replies
        }  # fmt: skip
    return tree


def _evaluation_section(recipe: Recipe) -> EvaluateSection:
    return recipe.evaluate or EvaluateSection()


def _can_evaluate(recipe: Recipe) -> bool:
    """Whether the recipe makes a policy that can be evaluated."""
    has_heldout = recipe.data is None or recipe.data.heldout_share > 0
    return recipe.method is not None and (has_heldout or not trains_reward(recipe))


def _few_steps(recipe: Recipe, stage: str, run: Path) -> dict[str, Any]:
    """What makes a stage's training short, and its log tell the time of its steps."""
    config = trainer_config(recipe, stage, run)
    if stage not in ONLINE:
        few: dict[str, Any] = {"max_steps": STEPS, "logging_steps": 1, "logging_strategy": "steps"}
        if stage == "reward":
            few |= {"reference_samples": min(stage_options(recipe, stage).reference_samples, 8), "gates": "off"}
        if stage == "best_of_n":
            few |= {"prompts": stage_options(recipe, stage).sampling_batch_size}
        return few
    steps = _steps_per_rollout(config)
    few = {"max_steps": -1, "total_episodes": ROLLOUTS * config.generation_batch_size, "logging_steps": steps,
           "logging_strategy": "steps"}  # fmt: skip
    if stage == "ppo":
        few |= {"preview_best_of": 0, **({"eval_steps": steps} if config.eval_strategy != "no" else {})}
    return few


def _steps_per_rollout(config: Any) -> int:
    return max(1, config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps)


def _compiles(recipe: Recipe, plans: Sequence[StagePlan], device: str) -> bool:
    """Whether the whole run would compile its decoding, which a short one would not by itself."""
    if recipe.ppo is None:
        return False
    config = trainer_config(recipe, "ppo", recipe.folder / "ppo")
    config.max_steps = next((plan.optimizer_steps for plan in plans if plan.stage == "ppo"), None) or config.max_steps
    return compiles(config, device)


# ---- a stage's seconds ---------------------------------------------------------------------------------------------


def _seconds(recipe: Recipe, lists: Lists, plan: StagePlan, found: Tried) -> float | None:
    """Of a stage: its steps, and what it samples beside them."""
    stage, reply = plan.stage, found.reply
    if stage == "evaluate" and reply and lists.evaluation_prompts is not None:
        section = _evaluation_section(recipe)
        if section.judge or section.reference or section.own or section.benchmarks or section.hhh or section.pairs:
            plan.notes.append("its time is without judge, reference, own suites, public suites, hhh and pairs")
        return reply * _replies(recipe, lists.evaluation_prompts.rows) + found.report
    if stage not in found.step or plan.optimizer_steps is None:
        return None
    seconds = found.step[stage] * plan.optimizer_steps
    if stage == "reward":
        options = stage_options(recipe, stage)
        length, _ = sampling(recipe) or UNTRAINED
        if options.reference_samples and not reply:
            plan.notes.append("its time is without the replies of reference_samples")
        seconds += reply * options.reference_samples * options.reference_length / length
    if stage == "best_of_n":
        options = stage_options(recipe, stage)
        prompts = plan.rows["prompts"].rows
        seconds += reply * options.n * min(options.prompts or prompts, prompts)
    if stage in found.evaluation:
        config = trainer_config(recipe, stage, recipe.folder / stage)
        often = math.ceil(plan.optimizer_steps / _every(config, plan.optimizer_steps)) + 1
        seconds += found.evaluation[stage] * (often + config.preview_best_of)
    return seconds


def _every(config: Any, steps: int) -> float:
    """Optimizer steps between two evaluations."""
    return max(1.0, config.eval_steps * steps if config.eval_steps < 1 else config.eval_steps)


def _replies(recipe: Recipe, there: int) -> int:
    """Replies that an evaluation samples: of the policy and of its start, of the snapshots, and the best of n.

    Args:
        there: prompts that there are, those about refusals among them.
    """
    section = _evaluation_section(recipe)
    asks_more = "refusals" in section.suites and recipe.world is None
    refusals = len(shipped_prompts(section.refusal_prompts)) if asks_more else 0
    prompts = min(section.prompts, there)
    found = 2 * (prompts + refusals)
    if "overoptimization" in section.suites:
        found += min(section.snapshot_prompts, prompts) * (SNAPSHOTS + section.best_of_n)
    return found
