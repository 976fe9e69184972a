"""Reward modelling: adapters and heads learn which of two replies people preferred, and another one is held out.

1. Training pairs are two disjoint sets by a hash of the prompt: one for the reward model, one for the held-out one.
2. The reward model is one adapter or several on one base (`reward.objectives`, `reward.ensemble`), the held-out one
   another, with another seed. Each is trained by TRL's RewardTrainer with the recipe's additions (llm_rlhf/reward/).
   The held-out one is never trained against; it only measures. Checkpoints are written; a launch that finds those of an
   interrupted launch goes on from them: one that was trained to its end is not trained again.
3. The mean score of the starting model's own replies is stored with each: PPO and the evaluation read scores less it.
4. All are read back from their files, as PPO and the evaluation will read them, and what they are worth on pairs that
   none of them saw is written beside what rules without a model would score; to each the temperature that makes its
   certainty true.
5. What would make PPO against them a waste is told now (evaluation/reward_checks.py); `reward.gates` says what follows.

Where `reward.model` names a finished reward model, nothing is trained or measured: which one it was is written down.

Writes: joint/ or helpful/ harmless/ or joint-0/ ..., and heldout/ (adapter, head, normalisation.json, calibration.json,
metrics.jsonl each) accuracy.json lengths.json warnings.json; or model.json
"""

import gc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from llm_rlhf.data.rows import Preference
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.judges import model_identity
from llm_rlhf.evaluation.loss_plateau import label_losses, plateau_check
from llm_rlhf.evaluation.reward_checks import Check, calibration_check, no_refusals_known, pair_checks, refusal_check
from llm_rlhf.evaluation.reward_gates import tell
from llm_rlhf.evaluation.start_samples import StartSamples, sample_start
from llm_rlhf.evaluation.suites.reward_accuracy import OBJECTIVES, reward_report
from llm_rlhf.models.adapter_training import TrainedAdapter, train_adapter
from llm_rlhf.models.architecture import score_head_name
from llm_rlhf.models.base import (
    adapter_config,
    context_limit,
    keep_unpacked,
    load_tokenizer,
    loading_arguments,
    make_room_for,
)
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.fitting import Fitted, fit_preferences
from llm_rlhf.models.halving import HalvesPairs
from llm_rlhf.models.inference import load_roles, score_ids
from llm_rlhf.models.liger import add_liger
from llm_rlhf.models.roles import HELDOUT, NORMALISATION
from llm_rlhf.ppo.scores import training_reward
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe, stage_options, trains_reward
from llm_rlhf.reward.adapters import AdapterPlan, plan_adapters
from llm_rlhf.reward.loading import write_calibration
from llm_rlhf.reward.objectives import smoothed
from llm_rlhf.reward.trainer import PairTrainer, encode_pairs, starting_weight
from llm_rlhf.run_folder import RunFolder, write_json
from llm_rlhf.runs import splits, starting_model
from llm_rlhf.statistics.calibration import calibrate
from llm_rlhf.statistics.intervals import Estimate, numbered
from llm_rlhf.training import constructing, read_metrics

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder


class _RewardTrainer(HalvesPairs, TrainedAdapter, PairTrainer):
    stage_name = "reward"

    def _own_state(self) -> dict[str, Any]:
        return super()._own_state() | {"length_weight": self.length_weight}

    def take_back(self, state: dict[str, Any]) -> None:
        self.length_weight = state["length_weight"]

    def inseparable(self) -> str | None:
        if self.options.length_control == "residual":
            return "the weight of reward.length_control: residual follows whole micro-batches"
        return super().inseparable()


class Normalisation(NamedTuple):
    """What is taken off an adapter's scores, and what they are then divided by."""

    mean: float = 0.0
    deviation: float = 1.0


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train the reward model and the held-out one, and measure them. `folder` becomes `reward/`."""
    if not trains_reward(recipe):
        if run_folder.state.is_main_process:
            named = stage_options(recipe, "reward").model
            write_json(folder / "model.json", model_identity(named))
            print(f"      the reward model is {named}; nothing is trained", flush=True)
        return
    base = starting_model(recipe, run_folder, before="reward")
    tokenizer = load_tokenizer(base, recipe.model)
    sets = _pairs(recipe, run_folder, base, tokenizer, folder)
    plans = plan_adapters(stage_options(recipe, "reward"), sets["reward_pairs"], recipe.seed)
    if "heldout_pairs" in sets:
        plans.append(AdapterPlan(HELDOUT, sets["heldout_pairs"], recipe.seed + 1))
    for plan in plans:
        _train(recipe, run_folder, base, tokenizer, plan, folder / plan.name)
        gc.collect()
    run_folder.state.wait_for_everyone()
    names = [plan.name for plan in plans]
    model = load_roles(base, recipe.model, tokenizer, {name: folder / name for name in names})
    samples = sample_start(recipe, model, tokenizer, names, sets["reward_pairs"])
    normal = _normalise(recipe, run_folder, samples, names, folder)
    found = _measure(recipe, run_folder, model, tokenizer, normal, sets["evaluation_pairs"], folder)
    if found is not None:
        tell(recipe, [*_refusal_checks(recipe, normal, samples), *_other_checks(recipe, found, plans, folder)], folder)


def _pairs(
    recipe: Recipe, run_folder: RunFolder, base: str | Path, tokenizer: Any, folder: Path
) -> dict[str, list[Preference]]:
    """The pairs that fit, by split; no `heldout_pairs` where the recipe wants no held-out one."""
    config = trainer_config(recipe, "reward", folder)
    model_config = AutoConfig.from_pretrained(base, trust_remote_code=recipe.model.trusts_base)
    score_head_name(model_config, recipe.model.trusts_base)  # refuses an architecture that cannot score
    limit = min(config.max_length or 2**30, context_limit(recipe.model, model_config))
    pairs = splits(recipe, run_folder)
    sets = {}
    for what in ("reward_pairs", "heldout_pairs", "evaluation_pairs"):
        rows = getattr(pairs, what)
        if what == "heldout_pairs" and not rows:  # data.heldout_share is 0
            continue
        account = Fitted(limit, what)
        sets[what] = fit_preferences(tokenizer, rows, account)
        if not sets[what]:
            raise DataError(none_fits(account))
        if run_folder.state.is_main_process:
            account.write(folder)
    return sets


def none_fits(account: Fitted) -> str:
    """What to say where no pair of a split fits."""
    return f"None of the {account.what} fits into {account.limit} tokens; raise reward.max_length.{account.objection}"


def _train(
    recipe: Recipe, run_folder: RunFolder, base: str | Path, tokenizer: Any, plan: AdapterPlan, folder: Path
) -> None:
    options = stage_options(recipe, "reward")
    config = trainer_config(recipe, "reward", folder)
    config.seed = plan.seed
    config.max_length = None  # every pair already fits; TRL would drop the others without a word
    set_seed(plan.seed)  # the head starts random
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **loading_arguments(recipe.model))
    keep_unpacked(model)
    make_room_for(tokenizer, model)
    add_liger(model, config)
    head = score_head_name(model.config, recipe.model.trusts_base)
    rows = encode_pairs(tokenizer, plan.pairs, options)
    with constructing("reward"):
        trainer = _RewardTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "SEQ_CLS", model, modules_to_save=[head]),
            options=options,
            length_weight=starting_weight(rows, options),
        )
        compile_if_asked(trainer.model, recipe.model)
    train_adapter(trainer, run_folder, f"reward/{folder.name}", {"loss": "loss", "accuracy": "accuracy"})
    trainer.save_adapter(folder)
    if run_folder.state.is_main_process:
        tokenizer.save_pretrained(folder)


def _normalise(
    recipe: Recipe, run_folder: RunFolder, samples: StartSamples | None, names: list[str], folder: Path
) -> dict[str, Normalisation]:
    """Store the scores of the starting model's own replies beside each adapter: their mean becomes the score 0."""
    if samples is None:
        return dict.fromkeys(names, Normalisation())
    found = {}
    for name in names:
        scores = samples.scores[name][: samples.counted]
        deviation = max(scores.std(ddof=1), 1e-8) if stage_options(recipe, "reward").unit_deviation else 1.0
        found[name] = Normalisation(scores.mean(), deviation)
        known = {
            **found[name]._asdict(),
            "samples": samples.counted,
            "of": "replies sampled from the starting model at temperature 1",
        }
        if run_folder.state.is_main_process:
            write_json(folder / name / NORMALISATION, known)
    return found


def _measure(
    recipe: Recipe,
    run_folder: RunFolder,
    model: Any,
    tokenizer: Any,
    normal: dict[str, Normalisation],
    pairs: list[Preference],
    folder: Path,
) -> dict[str, Any] | None:
    """Measure the reward model, each of its adapters, and the held-out one, on pairs that none of them saw.

    Returns what `reward_report` found, in the main process; None in the others.
    """
    options = stage_options(recipe, "reward")
    sides = [[(pair.prompt, *pair.sides[i]) for pair in pairs] for i in (0, 1)]
    encoded = [[encode_reply(tokenizer, prompt, text).as_said(end) for prompt, text, end in side] for side in sides]
    rows = [[reply.ids for reply in side] for side in encoded]
    scores = {name: [score_ids(model, name, side, tokenizer.pad_token_id) for side in rows] for name in normal}
    if not run_folder.state.is_main_process:
        return None
    judged = {"reward": [_as_ppo_reads(recipe, normal, {name: scores[name][i] for name in scores}) for i in (0, 1)]}
    judged |= {name: scores[name] for name in scores if name == HELDOUT or len(options.adapters) > 1}
    found = reward_report(
        pairs,
        {name: (chosen, rejected) for name, (chosen, rejected) in judged.items()},
        {"reward": options.adapters} if options.ensemble > 1 else None,
        ([len(reply.reply_ids) for reply in encoded[0]], [len(reply.reply_ids) for reply in encoded[1]]),
    )
    write_json(folder / "accuracy.json", found)
    prompts = numbered(repr(pair.prompt) for pair in pairs)
    for name, (chosen, rejected) in scores.items():  # as trained: the reward model's may be weighted
        if np.any(chosen != rejected):
            known = found["calibration"].get(name)
            write_calibration(folder / name, known or calibrate(chosen - rejected, prompts))
    return found


def _as_ppo_reads(recipe: Recipe, normal: dict[str, Normalisation], scores: dict[str, np.ndarray]) -> np.ndarray:
    """The training reward of replies from the scores of each adapter as trained."""
    return training_reward(recipe, {name: (scores[name] - mean) / by for name, (mean, by) in normal.items()})


def _refusal_checks(recipe: Recipe, normal: dict[str, Normalisation], samples: StartSamples | None) -> list[Check]:
    """Would PPO be paid to refuse what it should, and to answer what it should?"""
    if samples is None:
        return [no_refusals_known("reward.reference_samples is 0, so that there are no replies to ask it about.")]
    scores = {"reward": _as_ppo_reads(recipe, normal, samples.scores)}
    scores |= {name: values for name, values in samples.scores.items() if name == HELDOUT}
    checks = []
    for objective in OBJECTIVES:
        rows = samples.rows_of(objective)
        refused, prompts = [samples.refused[i] for i in rows], numbered(repr(samples.prompts[i].messages) for i in rows)
        if rows:
            checks += [refusal_check(name, objective, of[rows], refused, prompts) for name, of in scores.items()]
    return checks or [
        no_refusals_known("no pair says which it is about; set 'objective' to helpful or harmless in data.preferences.")
    ]


def _other_checks(recipe: Recipe, found: dict[str, Any], plans: list[AdapterPlan], folder: Path) -> list[Check]:
    """What held-out pairs, the losses and the calibration say."""
    options = stage_options(recipe, "reward")
    measured = [Estimate(**entry) for part in ("estimates", "over_rules", "length") for entry in found[part]]
    checks = pair_checks({(e.name, e.subject, e.split): e for e in measured})
    for plan in plans:
        losses = [line["loss"] for line in read_metrics(folder / plan.name) if "loss" in line]
        confidences = [smoothed(pair.confidence, options.label_smoothing) for pair in plan.pairs]
        coin, floor = label_losses(confidences, [pair.margin or 0.0 for pair in plan.pairs])
        checks.append(plateau_check("reward" if [plan.name] == options.adapters else plan.name, losses, coin, floor))
    return checks + [calibration_check(name, known) for name, known in found["calibration"].items()]
