"""Evaluation: is the trained policy better than the one it started from, and by how much?

1. The SFT model and the PPO policy answer the same prompts, decoded as in training, from one base in memory: the
   held-out prompts of the recipe and, where no world knows the truth, the refusal suite's that ship with the project.
2. Every reply is scored by the training reward model, by the held-out one, and, where the recipe's world knows the
   truth, by rule. Scores must not depend on the batch; this is checked first.
3. The policy's snapshots answer some of the prompts: the rewards against the distance from the start. So does the
   start, many times: what choosing among its replies by the training reward would give without training.
4. Given replies are read: which of two is more probable, and how probable held-out ones are.
5. Suites of the user's own: their prompts are answered, and their functions give every reply a number.
6. A judge that the recipe names compares the replies, when the base is out of memory.
7. Paired estimates with intervals, the curves of all stages and chosen samples become one report.

Replies are kept in the run's `cache/`, so that an interrupted evaluation goes on where it stopped.

Writes: report.html report.md report.json replies.jsonl replies_SUITE.jsonl lengths.json set_aside.jsonl
"""

import functools
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.data.checks import prompt_share, write_quarantine
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.data.splits import Splits, seen_in_training
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation import refusal_detector
from llm_rlhf.evaluation.answers import Answers, rows_digest, write_replies
from llm_rlhf.evaluation.judges import model_identity
from llm_rlhf.evaluation.judges.naming import judge_of, judge_record, judge_replies, judged_estimates
from llm_rlhf.evaluation.report.samples import choose_samples
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.run_report import Comparison, build_report
from llm_rlhf.evaluation.suites import refusals as refusal_suite
from llm_rlhf.evaluation.suites.best_of_n import best_of_n
from llm_rlhf.evaluation.suites.gains import compare
from llm_rlhf.evaluation.suites.hhh import hhh_estimates, pair_logprobs
from llm_rlhf.evaluation.suites.own import (
    Scored,
    score_replies,
    suite_estimates,
    suite_prompts,
    suite_record,
    write_suite_replies,
)
from llm_rlhf.evaluation.suites.perplexity import demonstrations_of, perplexity_estimates, read_replies
from llm_rlhf.evaluation.suites.snapshot_curve import LEAST_PROMPTS, snapshot_curve, snapshot_folders
from llm_rlhf.models.base import context_limit, load_tokenizer
from llm_rlhf.models.encoding import encode_prompt, encode_reply
from llm_rlhf.models.fitting import Fitted, fit_preferences, fit_prompts
from llm_rlhf.models.inference import (
    Reply,
    ReplyCache,
    check_batch_invariance,
    load_roles,
    reply_logprobs,
    sample_replies,
    score_ids,
)
from llm_rlhf.models.roles import HELDOUT, POLICY
from llm_rlhf.ppo.scores import training_reward
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import OwnSuite, Recipe
from llm_rlhf.reward.adapters import reward_folders
from llm_rlhf.run_folder import RunFolder, text_digest, write_json
from llm_rlhf.runs import splits, starting_model

SUBJECTS: dict[str, list[str]] = {"sft": [], "ppo": [POLICY]}  # and the adapters they are, on the one base


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Sample, score, compare and write the report. `folder` becomes `evaluate/`."""
    if recipe.ppo is None:
        if run_folder.state.is_main_process:
            write_report(build_report(recipe, run_folder, Comparison()), folder)
        return
    section = recipe.evaluate
    assert section is not None
    asked = _Asked(recipe, run_folder)
    prompts, account = asked.own_prompts()
    moved = asked.check_scores(prompts)
    answers = {subject: asked.answers(prompts, subject) for subject in SUBJECTS}
    comparison = Comparison(decoding=asked.decoding | {"top_p": 1.0, "top_k": 0})
    comparison.instruments = {"refusal_detector": refusal_detector.VERSION, "scores_moved_with_the_batch": moved}
    comparison.counts["evaluation prompts"] = account.counts()
    comparison.hashes = {"prompts": rows_digest(prompts), "chat template": text_digest(asked.tokenizer.chat_template)}
    comparison.estimates = compare(prompts, answers["ppo"], answers["sft"], section.resamples, recipe.seed)
    comparison.samples = choose_samples(prompts, answers["ppo"], answers["sft"], section.samples)
    files = {"replies.jsonl": (prompts, answers)}
    if "refusals" in section.suites and answers["ppo"].refused is None:
        known, fitted = asked.fitted(refusal_suite.shipped_prompts(section.refusal_prompts), "refusal prompts")
        comparison.counts[fitted.what] = fitted.counts()
        refusing = {subject: asked.answers(known, subject) for subject in SUBJECTS}
        comparison.estimates += refusal_suite.estimates(known, refusing["ppo"], refusing["sft"])
        files["replies_refusals.jsonl"] = (known, refusing)
        comparison.hashes["prompts refusals"] = rows_digest(known)
    if "overoptimization" in section.suites:
        comparison.overoptimization = asked.overoptimization(prompts, answers["ppo"])
    if section.hhh:
        asked.hhh(comparison)
    if section.perplexity_rows:
        asked.perplexity(comparison)
    own = [_own_suite(asked, suite, comparison) for suite in section.own]
    if section.judge is not None:
        asked.judge(comparison, section.judge, prompts, answers)
    if not run_folder.state.is_main_process:
        return
    account.write(folder)
    if comparison.set_aside:
        write_quarantine(comparison.set_aside, folder / "set_aside.jsonl")
    for suite, rows, texts, scored in own:
        write_suite_replies(folder / f"replies_{suite.name}.jsonl", rows, texts, scored)
    for name, (rows, given) in files.items():
        write_replies(folder / name, rows, given)
    if comparison.judged is not None:
        write_json(folder / "judge.json", comparison.judged.as_dict())
    write_report(build_report(recipe, run_folder, comparison), folder)


class _Asked:
    """The one base with every role, and what it is asked."""

    def __init__(self, recipe: Recipe, run_folder: RunFolder) -> None:
        assert recipe.evaluate is not None
        self.recipe, self.run_folder, self.section = recipe, run_folder, recipe.evaluate
        ppo = trainer_config(recipe, "ppo", run_folder / "ppo")
        self.decoding: dict[str, Any] = {
            "response_length": self.section.response_length or ppo.response_length,
            "temperature": self.section.temperature or ppo.temperature,
            "seed": recipe.seed,
        }
        self.base = starting_model(recipe, run_folder, before="evaluate")
        self.adapters = {"sft": None, "ppo": run_folder / "ppo" / "policy"}
        self.tokenizer = load_tokenizer(self.base, recipe.model)
        self.rewards = {**reward_folders(recipe, run_folder), HELDOUT: run_folder / "reward" / HELDOUT}
        self.model = load_roles(
            self.base,
            recipe.model,
            self.tokenizer,
            self.rewards,
            policy=self.adapters["ppo"],
            temperature=self.decoding["temperature"],
        )
        self.pad = self.tokenizer.pad_token_id

    @functools.cached_property
    def data(self) -> Splits:
        return splits(self.recipe, self.run_folder)

    def own_prompts(self) -> tuple[list[Prompt], Fitted]:
        """The recipe's evaluation prompts, at most as many as it asks for, chosen by a hash of the prompt."""
        found, account = self.fitted(self.data.evaluation_prompts, "evaluation_prompts")
        chosen = sorted(range(len(found)), key=lambda i: prompt_share(found[i].messages))[: self.section.prompts]
        return [found[i] for i in sorted(chosen)], account

    def fitted(self, prompts: Sequence[Prompt], what: str) -> tuple[list[Prompt], Fitted]:
        """The prompts that leave room for a reply, and the account of the others."""
        account = Fitted(self.room(), what)
        found = fit_prompts(self.tokenizer, prompts, account)
        if not found:
            raise DataError(
                f"None of the {what} leaves room for a reply of {self.decoding['response_length']} tokens; lower "
                "evaluate.response_length, or add prompts."
            )
        return found, account

    def seen(self, rows: Sequence[Preference | Prompt]) -> int:
        return seen_in_training(self.data, rows)

    def room(self) -> int:
        room = context_limit(self.recipe.model, self.model.config) - int(self.decoding["response_length"])
        if room <= 0:
            raise DataError(
                f"A reply of {self.decoding['response_length']} tokens leaves no room for a prompt; lower "
                "evaluate.response_length."
            )
        return room

    def check_scores(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        rows = [encode_prompt(self.tokenizer, prompt.messages) for prompt in prompts[:16]]
        exact = self.recipe.model.dtype == "float32" and self.recipe.model.quantization == "none"
        return {name: check_batch_invariance(self.model, name, rows, self.pad, exact) for name in self.rewards}

    def answers(self, prompts: Sequence[Prompt], subject: str) -> Answers:
        """A policy's replies and everything that is measured of each by itself."""
        replies = self._replies(prompts, subject, f"evaluate: {subject} answers")
        answers = self._read(prompts, replies)
        if adapters := SUBJECTS[subject]:
            size = self.section.batch_size
            own, reference = (reply_logprobs(self.model, a, replies, self.pad, size) for a in (adapters, []))
            answers.sequence_kl = [a - b for a, b in zip(own, reference, strict=True)]
        return answers

    def texts(self, prompts: Sequence[Prompt], subject: str, what: str) -> list[str]:
        """A policy's replies alone."""
        return [reply.text for reply in self._replies(prompts, subject, f"evaluate: {subject} answers {what}")]

    def measure(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, list[float]]:
        """Scores of the replies: "reward", "heldout" and, where the world knows it, "gold"."""
        answers = self._read(prompts, replies)
        return {name: values for name in ("reward", "heldout", "gold") if (values := getattr(answers, name))}

    def _read(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Answers:
        """The replies with their rewards and what rules say of them."""
        answers = Answers.of(replies)
        scores = self._scores([reply.prompt_ids + reply.ids for reply in replies])
        answers.reward, answers.heldout = (scores[name].astype(float).tolist() for name in ("reward", "heldout"))
        answers.read_by_rule(prompts)
        return answers

    def _scores(self, rows: Sequence[list[int]]) -> dict[str, np.ndarray]:
        """Scores of token rows by what PPO was trained against, and by the model that it never saw."""
        scores = {name: score_ids(self.model, name, rows, self.pad, self.section.batch_size) for name in self.rewards}
        return {"reward": training_reward(self.recipe, scores), "heldout": scores[HELDOUT]}

    def overoptimization(self, prompts: Sequence[Prompt], policy: Answers) -> dict[str, Any] | None:
        """The curves of the snapshots and of best-of-n; None where there are no snapshots, or too few prompts."""
        snapshots = snapshot_folders(self.run_folder / "ppo")
        by_share = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "snapshots"))
        rows = by_share[: self.section.snapshot_prompts]
        if len(rows) < LEAST_PROMPTS or not snapshots:
            return None
        chosen = [prompts[i] for i in rows]
        size = self.section.batch_size
        found = snapshot_curve(
            self.model, self.tokenizer, chosen, snapshots, self.measure, **self.decoding, batch_size=size,
            known=lambda step: self._cache(f"step-{step}" if step else "sft"),
        )  # fmt: skip
        n = self.section.best_of_n
        if n > 1:
            many = [prompt for prompt in chosen for _ in range(n)]
            measured = self.measure(many, self._replies(many, "sft", f"evaluate: best of {n}"))
            scores = {name: np.reshape(values, (len(chosen), n)) for name, values in measured.items()}
            own = {name: [getattr(policy, name)[i] for i in rows] for name in scores}
            found["best_of_n"] = best_of_n(scores, own, self.section.resamples, self.recipe.seed)
        return found

    def hhh(self, comparison: Comparison) -> None:
        """Which of two given replies the policies find more probable, and the reward models score higher."""
        found = load_comparisons(self.section.hhh)
        pairs, counts = self._fitted_pairs(found.pairs, "pairs of hhh")
        logprobs = {
            subject: pair_logprobs(self.model, self.tokenizer, adapters, pairs, self.section.batch_size)
            for subject, adapters in SUBJECTS.items()
        }
        rows = [encode_reply(self.tokenizer, p.prompt, reply).ids for p in pairs for reply in (p.chosen, p.rejected)]
        judged = {name: np.asarray(found, np.float64).reshape(-1, 2) for name, found in self._scores(rows).items()}
        comparison.estimates += hhh_estimates(
            pairs, logprobs, judged, ("ppo", "sft"), self.section.resamples, self.recipe.seed
        )
        comparison.counts["hhh"] = found.counts() | {"fitted": counts, "seen_in_training": self.seen(pairs)}
        comparison.set_aside += found.set_aside

    def perplexity(self, comparison: Comparison) -> None:
        """How probable the policies find replies that people preferred and no stage was trained on."""
        held_out = self.data.evaluation_pairs
        if not len(held_out):
            return  # the report says that it was not measured
        rows, counts = self._fitted_pairs(demonstrations_of(held_out, self.section.perplexity_rows), "held-out replies")
        read = functools.partial(read_replies, self.model, self.tokenizer)
        prompts, replies = [row.prompt for row in rows], [row.chosen for row in rows]
        losses = {
            subject: read(adapters, prompts, replies, self.section.batch_size) for subject, adapters in SUBJECTS.items()
        }
        comparison.estimates += perplexity_estimates(
            rows, losses, ("ppo", "sft"), self.section.resamples, self.recipe.seed
        )
        comparison.counts["perplexity"] = counts

    def judge(
        self, comparison: Comparison, named: str, prompts: Sequence[Prompt], answers: Mapping[str, Answers]
    ) -> None:
        """Both policies' replies compared by the judge that the recipe names. The base is given up for it."""
        policies = [model_identity(self.base, adapter=self.adapters[subject]) for subject in SUBJECTS]
        del self.model
        gc.collect()
        torch.cuda.empty_cache()
        cache = self.run_folder / "cache" / "judge.jsonl"
        judge = judge_of(named, self.recipe.model, cache, self.section.judge_key_variable, self.section.batch_size)
        found = judge_replies(judge, prompts, answers["ppo"], answers["sft"], policies)
        comparison.estimates += judged_estimates(
            found, prompts, answers["ppo"], answers["sft"], ("ppo", "sft"), self.section.resamples, self.recipe.seed
        )
        comparison.instruments["judge"] = judge_record(found)
        comparison.judged = found

    def _fitted_pairs(self, pairs: Sequence[Preference], what: str) -> tuple[list[Preference], dict[str, Any]]:
        account = Fitted(context_limit(self.recipe.model, self.model.config), what)
        fitted = fit_preferences(self.tokenizer, pairs, account)
        if not fitted:
            raise DataError(f"None of {len(pairs)} {what} fits the model's context of {account.limit} tokens.")
        return fitted, account.counts()

    def _replies(self, prompts: Sequence[Prompt], subject: str, progress: str) -> list[Reply]:
        return sample_replies(
            self.model,
            self.tokenizer,
            [prompt.messages for prompt in prompts],
            SUBJECTS[subject],
            **self.decoding,
            batch_size=self.section.batch_size,
            progress=progress,
            known=self._cache(subject),
        )

    def _cache(self, subject: str) -> ReplyCache:
        return ReplyCache(self.run_folder / "cache" / f"{subject}.jsonl", self._identity(subject))

    def _identity(self, subject: str) -> dict[str, Any]:
        """What a reply depends on beside its prompt's tokens: the weights, how they are held, the decoding.

        Args:
            subject: "sft", "ppo", or the name of a snapshot.
        """
        parts = {"world": "", "sft": ""}  # of a stage's artefact: the folder that counts
        if subject != "sft":
            parts["ppo"] = "policy/" if subject == "ppo" else f"snapshots/{subject}/"
        weights = {
            f"{stage}/{name}": entry["sha256"]
            for stage, part in parts.items()
            if (self.run_folder / stage).exists()
            for name, entry in self.run_folder.manifest(stage)["files"].items()
            if name.endswith(".safetensors") and name.startswith(part)
        }
        model = self.recipe.as_dict()["model"]
        return {"subject": subject, "weights": weights, "model": model, "decoding": self.decoding}


def _own_suite(
    asked: _Asked, suite: OwnSuite, comparison: Comparison
) -> tuple[OwnSuite, list[Prompt], dict[str, list[str]], dict[str, Scored]]:
    """A user's suite asked, scored and added to the comparison; also what of it is to be written down."""
    loaded = suite_prompts(suite)
    prompts, account = asked.fitted(loaded.rows, f"prompts of {suite.name}")
    comparison.counts[account.what] = loaded.counts() | {
        "fitted": account.counts(),
        "seen_in_training": asked.seen(prompts),
    }
    comparison.set_aside += loaded.set_aside
    texts = {subject: asked.texts(prompts, subject, suite.name) for subject in SUBJECTS}
    scored = {subject: score_replies(suite, prompts, given) for subject, given in texts.items()}
    comparison.estimates += suite_estimates(
        suite, prompts, scored, ("ppo", "sft"), asked.section.resamples, asked.recipe.seed
    )
    comparison.own[suite.name] = suite_record(suite, scored)
    return suite, prompts, texts, scored
