"""Faults planted in the code, one at a time: each must be caught by a test of the invariant that it breaks.

`make mutants`, or `python tests/mutants.py [WORD ...]` for the faults whose name, file or test holds one of the words.
Those of the methods beside PPO stand in method_mutants.py, those of what keeps a run in recovery_mutants.py. Every
fault is a change of one line or two, made in a copy of the package; it counts as caught only if a test that carries the
name of its invariant fails, and fails as a test (an import error or an unknown option does not count).

Tests run in the folder of that copy and with it first on the path, and so do the processes they start: `python -m
llm_rlhf`, accelerate, forks. Each process writes down which package it imported; where one imported another than
the copy, nothing has been judged, and the exit code is 2 in place of 1.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from method_mutants import OF_METHODS
from recovery_mutants import OF_RECOVERY

ROOT = Path(__file__).resolve().parent.parent
WIRING = "tests/parity/test_ppo_wiring.py"
PROCESSES = "tests/parity/test_processes.py"
RESUMED = "tests/pipeline/test_resume.py::test_a_resumed_trainer_ends_with_the_same_bits"
KILLED = "tests/pipeline/test_resume.py::test_killed_after_a_checkpoint[whole]"


class Fault(NamedTuple):
    invariant: str  # the test's name holds it
    what: str
    file: str  # under llm_rlhf/
    old: str
    new: str
    tests: str = "tests/parity/test_ppo_invariants.py"  # a file, or one test of it


FAULTS = [
    Fault("invariant_01", "old log-probabilities are the update's own, detached", "ppo/trainer.py",
          'now["logprobs"], batch.old_logprobs, batch.advantages',
          'now["logprobs"], batch.old_logprobs.copy_(now["logprobs"].detach()), batch.advantages'),
    Fault("invariant_01", "old log-probabilities from other padded shapes", "ppo/collecting.py",
          "policy = self.model(**inputs)",
          'policy = {k: v[:, :-8] if k != "x" else v for k, v in self.model(**{k: torch.nn.functional.pad(v, (0, 8)) '
          "for k, v in inputs.items()}).items()}"),
    Fault("invariant_02", "the reference reads with the reward adapter", "ppo/collecting.py",
          "with active_adapters(self.base_model(), self.reference_adapters):",
          'with active_adapters(self.base_model(), ["reward"]):'),
    Fault("invariant_02", "switching adapters off leaves them on", "models/adapters.py",
          "_activate(layers, names)\n", "_activate(layers, names or [POLICY])\n"),
    Fault("invariant_02", "merging writes into the base", "models/merged.py",
          "mine.data = torch.empty(shape_of(source, part), dtype=self.dtype, device=own.device)",
          "mine.data = own.data"),
    Fault("invariant_03", "what is sampled from is not the policy", "models/merged.py",
          "torch.add(whole, delta, out=mine.data)", "mine.data.copy_(whole)", tests="tests/parity/test_ppo_options.py"),
    Fault("invariant_03", "the reference is the policy", "ppo/collecting.py",
          "with active_adapters(self.base_model(), self.reference_adapters):",
          "with active_adapters(self.base_model(), [POLICY]):"),
    Fault("invariant_03", "log-probabilities one token late", "models/roles.py",
          "slice(input_ids_BT.size(1) - R - 1, input_ids_BT.size(1) - 1)",
          "slice(input_ids_BT.size(1) - R, input_ids_BT.size(1))"),
    Fault("invariant_03", "biased sampling passes without a warning", "ppo/config.py",
          "return bool(args.top_p < 1 or", "return bool("),
    Fault("invariant_04", "dropout modules stay on", "ppo/soundness.py", "module.p = 0.0", "pass"),
    Fault("invariant_04", "attention's dropout rate stays on", "ppo/soundness.py",
          "setattr(holder, name, 0.0)", "pass"),
    Fault("invariant_05", "a pad token that stops pads all the same", "models/base.py",
          "elif tokenizer.pad_token_id in ends:", "elif False:"),
    Fault("invariant_05", "EOS is read as padding", "ppo/rollout.py",
          "[1] * (len(p) + len(r)) + [0] * (R - len(r))", "[1] * (len(p) + len(r) - 1) + [0] * (R - len(r) + 1)"),
    Fault("invariant_06", "positions count the padding", "models/roles.py",
          "return attention_mask_BT.cumsum(1) - attention_mask_BT",
          "return torch.ones_like(attention_mask_BT).cumsum(1) - 1"),
    Fault("invariant_07", "the score is read one token early", "models/roles.py",
          "device=hidden_BTH.device)).argmax(1)", "device=hidden_BTH.device)).argmax(1) - 1"),
    Fault("invariant_07", "the score lands one token early", "ppo/objectives.py",
          "return mask_BR.bool() & (counted_after == 0)", "return mask_BR.bool() & (counted_after == 1)"),
    Fault("invariant_07", "the score lands past the end", "ppo/objectives.py",
          "rewards + scores_B.unsqueeze(1) * last_counted(mask_BR)",
          "rewards + scores_B.unsqueeze(1) * last_counted(mask_BR).roll(1, 1)"),
    Fault("invariant_08", "only the tokenizer's EOS stops", "ppo/collecting.py",
          "padded.input_ids, mask, self.eos_token_ids)", "padded.input_ids, mask, self.eos_token_ids[:1])"),
    Fault("invariant_08", "a stop token anywhere counts as the end", "ppo/rollout.py",
          "(stops & objectives.last_counted(response_mask_BR)).any(1)", "stops.any(1)"),
    Fault("invariant_08", "stopping is punished", "ppo/rollout.py",
          "args.missing_eos_penalty * (~batch.stopped)", "args.missing_eos_penalty * (batch.stopped)"),
    Fault("invariant_09", "the KL's sign is flipped", "ppo/objectives.py",
          "rewards = -kl_coef * kl_BR", "rewards = kl_coef * kl_BR"),
    Fault("invariant_09", "the KL is of reference and policy", "ppo/objectives.py",
          "log_ratio = (logprobs_BR - ref_logprobs_BR)", "log_ratio = (ref_logprobs_BR - logprobs_BR)"),
    Fault("k3_is_never_negative", "k3 with the other ratio", "ppo/objectives.py",
          "return torch.exp(-log_ratio) - 1 + log_ratio", "return torch.exp(log_ratio) - 1 - log_ratio",
          "tests/ppo/test_objectives.py"),
    Fault("invariant_10", "the controller is not clipped", "ppo/kl.py",
          "min(max(kl / self.target - 1, -0.2), 0.2)", "kl / self.target - 1"),
    Fault("invariant_10", "the controller steers away", "ppo/kl.py", "kl / self.target - 1", "1 - kl / self.target"),
    Fault("invariant_10", "the coefficient that is steered is not the one paid", "ppo/collecting.py",
          "kl_coef = self.kl_controller.value", "kl_coef = self.args.kl_coef"),
    Fault("invariant_11", "moments of the last rollout only", "ppo/scores.py",
          "        count = total(torch", "        self.__init__()\n        count = total(torch"),
    Fault("invariant_11", "clipped before it is scaled", "ppo/collecting.py",
          "self._normalised(batch.raw_scores, ",
          "self._normalised(batch.raw_scores.clamp(*(self.reward_clip_range or (-1e9, 1e9))), "),
    Fault("invariant_11", "scaling also centres", "ppo/scores.py",
          'values_B - self.mean if how == "whiten" else values_B', "values_B - self.mean"),
    Fault("invariant_11", "the reference mean is not taken off", "models/roles.py",
          "head.bias.copy_(-torch.tensor(mean) / deviation)", "head.bias.zero_()"),
    Fault("invariant_12", "lambda is dropped", "ppo/objectives.py",
          "running = deltas[:, t] + gamma * lam * running", "running = deltas[:, t] + gamma * running"),
    Fault("invariant_12", "values go on after the end", "ppo/objectives.py",
          "    values = values_BR * mask\n", "    values = values_BR\n"),
    Fault("invariant_12", "whitened per micro-batch", "ppo/rollout.py",
          "objectives.whiten(estimates[i].advantages, moments, masks[i])",
          "objectives.whiten(estimates[i].advantages, "
          "objectives.masked_moments([estimates[i].advantages], [masks[i]], total), masks[i])"),
    Fault("invariant_12", "each micro-batch divides by its own tokens", "ppo/trainer.py",
          "share = self.accelerator.num_processes / batch.tokens_per_mini_batch",
          "share = self.accelerator.num_processes / mask.sum()"),
    Fault("invariant_12", "DDP's mean is not undone", "ppo/trainer.py",
          "share = self.accelerator.num_processes / batch.tokens_per_mini_batch",
          "share = 1 / batch.tokens_per_mini_batch", PROCESSES),
    Fault("invariant_12", "whitened per process", "ppo/rollout.py",
          "masked_moments([e.advantages for e in estimates], masks, total)",
          "masked_moments([e.advantages for e in estimates], masks)", PROCESSES),
    Fault("critics_warm_up", "in the critic's warm-up the policy is stepped by zeros", "ppo/trainer.py",
          "trainer.policy_parameters() if trainer.warming_up else []", "[]"),
    Fault("invariant_13", "the value is not clipped", "ppo/objectives.py",
          "clipped = (near_old - returns_BR) ** 2", "clipped = unclipped"),
    Fault("invariant_13", "half is forgotten", "ppo/objectives.py",
          "TokenLoss(0.5 * torch.max(unclipped, clipped)", "TokenLoss(torch.max(unclipped, clipped)"),
    Fault("invariant_13", "the value head starts at zero", "models/roles.py",
          'if value == "adapter" and name is not None else None', "if False else None"),
    Fault("invariant_13", "the policy learns in the critic's warm-up", "ppo/trainer.py",
          "policy_sum * (0.0 if warming_up else 1.0)", "policy_sum"),
    Fault("invariant_13", "the warming critic moves the policy's trunk", "models/roles.py",
          "hidden_BRH = hidden_BRH.detach()", "pass"),
    Fault("invariant_13", "explained variance is not logged", "ppo/rollout.py",
          'metrics["val/explained_variance"]', 'metrics["val/variance"]'),
    Fault("invariant_14", "every epoch in the same order", "ppo/trainer.py",
          "self._steps = shuffled_steps(len(self._micro_batches), steps, self.args.seed + self._step)", "pass"),
    Fault("invariant_14", "rows are used twice", "ppo/rollout.py",
          "order = torch.randperm(micro_batches, generator=torch.Generator().manual_seed(seed))",
          "order = torch.randint(micro_batches, (micro_batches,), generator=torch.Generator().manual_seed(seed))"),
    Fault("invariant_12", "of several micro-batches only the last is learned from", "ppo/trainer.py",
          "                self.accelerator.backward(loss)\n", "                pass\n"),
    Fault("invariant_15", "Adam's epsilon is torch's", "ppo/config.py", "default=1e-5, metadata={\"help\": \"AdamW's",
          "default=1e-8, metadata={\"help\": \"AdamW's"),
    Fault("invariant_15", "a skipped step still decays", "ppo/trainer.py",
          "parameter.grad = None  #", "parameter.grad = None if parameter.grad is None else parameter.grad * 0  #"),
    Fault("invariant_15", "the ratio is not watched", "ppo/guards.py",
          "mean_ratio > self.ratio_limit)", "False)"),
    Fault("invariant_15", "only the step beyond the limit is skipped", "ppo/guards.py",
          "            self.rest_is_skipped = True\n", "            return True\n"),
    Fault("invariant_15", "the KL limit does not stop", "ppo/collecting.py",
          "self.guard.rest_is_skipped = self.control.should_training_stop = True", "pass"),
    Fault("invariant_16", "weights upside down", "ppo/objectives.py",
          "log_ratio = (old_logprobs_BR - engine_logprobs_BR)", "log_ratio = (engine_logprobs_BR - old_logprobs_BR)"),
    Fault("invariant_16", "weights are not capped", "ppo/objectives.py",
          "log_ratio.exp().clamp(max=cap)", "log_ratio.exp()"),
    Fault("invariant_16", "weights are not applied", "ppo/objectives.py",
          "loss if importance_BR is None else loss * importance_BR", "loss"),
    Fault("invariant_17", "means over padding too", "ppo/rollout.py",
          "float(sum(mask.sum() for mask in masks))", "float(sum(mask.numel() for mask in masks))"),
    Fault("invariant_17", "the loss's means are over padding too", "ppo/trainer.py",
          "{name: (x * mask).sum() for name, x in numbers.items()}",
          "{name: (x + ~mask).sum() for name, x in numbers.items()}"),
    Fault("invariant_18", "the value head is not loaded", "ppo/saving.py",
          "self.base_model().value_head.load_state_dict(", "("),
    Fault("invariant_18", "the value head is saved as zeros", "ppo/saving.py",
          "w.detach().cpu().contiguous()", "w.detach().cpu().contiguous() * 0"),
    Fault("invariant_18", "the reward head starts anew", "models/roles.py",
          "head = scalar_head(hidden_size, weight)", "head = scalar_head(hidden_size, torch.randn_like(weight))"),
    Fault("leaves_the_reference", "copies of modules stay switched on", "models/adapters.py",
          "isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)", "isinstance(module, BaseTunerLayer)",
          "tests/parity/test_saved_modules.py::test_a_training_leaves_the_reference_and_moves_what_it_should[tied-head]"),
    Fault("touches_nobody_else", "the policy reads with the reward adapter's embeddings", "models/adapters.py",
          "_activate(switches(model), [POLICY])", "pass", "tests/parity/test_saved_modules.py"),
    Fault("every_trainable", "adapters are switched as PEFT does", "models/adapters.py",
          "layer._active_adapter = [name for name in names if name in known]\n",
          "layer.set_adapter([name for name in names if name in known])\n"),
    Fault("every_trainable", "recomputed with the adapters of the backward", "models/adapters.py",
          "return contextlib.nullcontext(), active_adapters(model, names)",
          "return contextlib.nullcontext(), contextlib.nullcontext()"),
    Fault("clipped_surrogate", "the surrogate is not clipped", "ppo/objectives.py",
          "ratio.clamp(1 - cliprange, 1 + cliprange)", "ratio"),
    Fault("clipped_surrogate", "the better of the two", "ppo/objectives.py",
          "loss = torch.max(unclipped, clipped)", "loss = torch.min(unclipped, clipped)"),
    Fault("invariant_12", "a step is divided by its micro-batches once more", "ppo/trainer.py",
          "loss_is_scaled_for_ga = True", "loss_is_scaled_for_ga = False", WIRING),
    Fault("temperature_sharpens", "a draw knows no temperature", "models/random_draws.py",
          "scores_BV = scores_BV / temperature", "pass",
          "tests/ppo/test_sampling.py"),
    Fault("invariant_03", "the policy is drawn from without its temperature", "ppo/sampling.py",
          "base, dtype, args.temperature,", "base, dtype, 1.0,", WIRING),
    Fault("invariant_03", "a copied reference is read at temperature 1", "ppo/trainer.py",
          "add_role_forward(self.accelerator.unwrap_model(self.ref_model), self.temperature)",
          "add_role_forward(self.accelerator.unwrap_model(self.ref_model))", WIRING),
    Fault("invariant_03", "a copied reference's fused head has temperature 1", "ppo/trainer.py",
          "add_fused_lm_head(reference, temperature=self.temperature)", "add_fused_lm_head(reference)", WIRING),
    Fault("invariant_07", "every process reads the first one's function scores", "ppo/collecting.py",
          "start = self.accelerator.process_index * len(prompts)", "start = 0", PROCESSES),
    Fault("invariant_14", "every process draws the same random numbers", "ppo/trainer.py",
          "set_seed(args.seed, device_specific=True)", "set_seed(args.seed)", PROCESSES),
    Fault("invariant_11", "score moments of one process", "ppo/collecting.py",
          "self.score_moments.update(scores[heard], [sides[order[place]] for place in heard], self._total)",
          "self.score_moments.update(scores[heard], [sides[order[place]] for place in heard], lambda x: x)", PROCESSES),
    Fault("invariant_10", "the controller counts one process' episodes", "ppo/collecting.py",
          "self.kl_controller.update(kl, episodes)",
          "self.kl_controller.update(kl, episodes // self.accelerator.num_processes)", PROCESSES),
    Fault("invariant_15", "the KL limit is compared per token", "ppo/collecting.py",
          "self.args.kl_limit is not None and kl > self.args.kl_limit",
          'self.args.kl_limit is not None and metrics["objective/kl_per_token"] > self.args.kl_limit', WIRING),
    Fault("invariant_13", "the value is clipped by the policy's range", "ppo/trainer.py",
          "batch.returns, self.args.cliprange_value", "batch.returns, self.args.cliprange", WIRING),
    Fault("invariant_13", "the policy is clipped by the value's range", "ppo/trainer.py",
          "batch.advantages, self.args.cliprange, ", "batch.advantages, self.args.cliprange_value, ", WIRING),
    Fault("invariant_16", "the weights' cap is not the configured one", "ppo/collecting.py",
          "engine_logprobs, mask, self.args.importance_cap", "engine_logprobs, mask, 2.0"),
    Fault("invariant_16", "the weights have no cap", "ppo/collecting.py",
          "engine_logprobs, mask, self.args.importance_cap", 'engine_logprobs, mask, float("inf")'),
    Fault("means_over_their_own_tokens", "a line is the mean of its steps' sums", "ppo/trainer.py",
          "[sum(kept[name]) / tokens]", "[sum(kept[name]) / len(counts)]", WIRING),
    Fault("means_over_their_own_tokens", "demonstrations are weighed by the replies' tokens", "ppo/trainer.py",
          '"ptx_tokens": demonstrations.mask.sum()', '"ptx_tokens": mask.sum()', WIRING),
    Fault("invariant_15", "the guard's ratio is a sum", "ppo/trainer.py",
          'sums["policy/ratio"] / tokens', 'sums["policy/ratio"]', WIRING),
    Fault("invariant_15", "the guard's KL is a sum", "ppo/trainer.py",
          'sums["policy/approxkl"] / tokens', 'sums["policy/approxkl"]', WIRING),
    Fault("invariant_11", "evaluation feeds the score moments", "ppo/collecting.py",
          "if training:\n            self.score_moments.update", "if True:\n            self.score_moments.update",
          WIRING),
    Fault("value_warm_up", "demonstrations are learned in the critic's warm-up", "ppo/trainer.py",
          "(0.0 if warming_up else self.args.ptx_coef) * ptx", "self.args.ptx_coef * ptx", WIRING),
    Fault("layer_by_hand", "the update of LoRA is not scaled", "models/lora_sums.py",
          "B.t(), alpha=scaling", "B.t()", "tests/models/test_lora_sums.py"),
    Fault("frozen_layer", "where a layer learns, the update of LoRA is not scaled", "models/lora_sums.py",
          "B_Or.t(), alpha=scaling", "B_Or.t()", "tests/models/test_lora_sums.py"),
    Fault("frozen_layer", "the gradient of LoRA's second factor is not scaled", "models/lora_sums.py",
          "of_B.mul_(ctx.scaling)", "pass", "tests/models/test_lora_sums.py"),
    Fault("frozen_layer", "the gradient of a layer's input is the frozen matrix's alone", "models/lora_sums.py",
          ".addmm_(of_low_Nr, A_rI)", "", "tests/models/test_lora_sums.py"),
    Fault("bias_that_is_trained", "a frozen matrix's bias is taken for frozen too", "models/lora_sums.py",
          " or (layer.bias is not None and layer.bias.requires_grad)", "", "tests/models/test_lora_sums.py"),
    Fault("somebody_holds", "what a layer gave is written over, whoever holds it", "models/lora_sums.py",
          "if learns or _shows_output(base)", "if learns", "tests/models/test_lora_sums.py"),
    Fault("more_belongs", "a frozen matrix's hooks are passed over", "models/lora_sums.py",
          " or hooks or _shows_output(layer)", "",
          "tests/models/test_lora_sums.py"),
    Fault("add_up", "of adapters that are on together the last counts", "models/lora_sums.py",
          "result.reshape(-1, result.size(-1)), low", "self.base_layer(x).reshape(-1, result.size(-1)), low",
          "tests/models/test_lora_sums.py"),
    Fault("sum_of_matrix", "the update that is added to a matrix is not scaled", "models/lora_sums.py",
          "B_Or, A_rI, alpha=scaling", "B_Or, A_rI", "tests/models/test_lora_sums.py"),
    Fault("sum_of_matrix", "the gradient of an input is that of the matrix without its update", "models/lora_sums.py",
          "_merged_weight(weight_OI, A_rI, B_Or, ctx.scaling).t()", "weight_OI.t()",
          "tests/models/test_lora_sums.py"),
    Fault("what_the_sum_is_for", "an update is added to a matrix of any type", "models/lora_sums.py",
          "if weight_OI.dtype != torch.float32 or x.device", "if x.device", "tests/models/test_lora_sums.py"),
    Fault("learns_what", "a layer's weight gets its gradient turned", "models/products.py",
          "product(gradient_NO.t(), x_NI.t())", "product(x_NI.t(), gradient_NO.t()).t().contiguous().view_as(weight_OI)"
          ".flip(0)", "tests/models/test_products.py"),
    Fault("ratio_1_and_kl_0", "the reference multiplies by another library than the policy", "ppo/trainer.py",
          "multiply_faster(self.ref_model)", "pass", "tests/models/test_products.py"),
    Fault("no_large_product", "small products wait for oneDNN", "models/products.py",
          "return x.numel() * weight_OI.size(0) >= LARGE", "return True", "tests/models/test_products.py"),
    Fault("shapes_that_were_met", "every shape's code is kept", "models/products.py",
          "os.environ.setdefault(variable, number)", "pass", "tests/models/test_products.py"),
    Fault("every_layout", "a bias is read whatever its strides", "models/products.py",
          "not bias_O.is_contiguous()", "False", "tests/models/test_products.py"),
    Fault("which_cpus", "on Intel's CPUs oneDNN multiplies too", "models/products.py",
          'return "Intel" not in', 'return "" in', "tests/models/test_products.py"),
    Fault("transformers", "keys and values that were held are not taken along to more room", "models/growing_cache.py",
          "room[:, :, :held] = old", "pass", "tests/models/test_growing_cache.py"),
    Fault("others_have_changed", "tensors of another layout are taken for beginnings", "models/growing_cache.py",
          "beginning.stride() != whole", "False", "tests/models/test_growing_cache.py"),
    Fault("drawn_anew", "every rollout has the same demonstrations", "ppo/collecting.py",
          "(self.args.seed * 1_000_003 + self.rollouts_done) * 1_009", "self.args.seed * 1_000_003 * 1_009", WIRING),
    Fault("invariant_14", "every pass takes the prompts in the same order", "ppo/preparation.py",
          "(self.seed or 0) + 1_000_003 * epoch", "self.seed or 0", WIRING),
    Fault("keep_best", "the best whole model is chosen and not loaded", "ppo/saving.py",
          "super()._load_from_checkpoint(str(folder))", "pass", WIRING),
    Fault("invariant_09", "the logged reward adds the KL", "ppo/rollout.py",
          "batch.final_scores - kl_coef * batch.sequence_kl", "batch.final_scores + kl_coef * batch.sequence_kl",
          WIRING),
    Fault("resumed_trainer", "the steered coefficient starts anew", "ppo/saving.py",
          'self.kl_controller.value = state["kl_coef"]', "pass", RESUMED),
    Fault("resumed_trainer", "the score moments start anew", "ppo/saving.py",
          'self.score_moments.load_state_dict(state["score_moments"])', "pass", RESUMED),
    Fault("resumed_trainer", "micro-steps are counted anew", "ppo/saving.py",
          'self._step = state["micro_steps"]', "pass", RESUMED),
    Fault("resumed_trainer", "the random numbers start anew", "ppo/saving.py",
          'self._step = state["micro_steps"]',
          'self._step, self._load_rng_state = state["micro_steps"], lambda *_: None', RESUMED),
    Fault("resumed_trainer", "the optimizer starts anew", "ppo/saving.py",
          'self._step = state["micro_steps"]',
          'self._step, self._load_optimizer_and_scheduler = state["micro_steps"], lambda *_: None', RESUMED),
    Fault("resumed_trainer", "the prompts start anew", "ppo/saving.py",
          'self._step = state["micro_steps"]',
          'self._step, self.args.ignore_data_skip = state["micro_steps"], True', RESUMED),
    Fault("resumed_trainer", "a pass' order hangs on the passes before", "ppo/preparation.py",
          "self.generator.manual_seed((self.seed or 0) + 1_000_003 * epoch)", "pass", RESUMED),
    Fault("resumed_trainer", "the roles are not read back", "ppo/saving.py",
          "self.load_roles(resume_from_checkpoint)", "pass", RESUMED),
    Fault("resumed_trainer", "what was logged after the checkpoint stays", "ppo/saving.py",
          "checkpoints.forget_after(log, step)", "pass", RESUMED),
    Fault("killed_after_a_checkpoint", "a killed run's coefficient starts anew", "ppo/saving.py",
          'self.kl_controller.value = state["kl_coef"]', "pass", KILLED),
    Fault("invariant_11", "scores feed the moments of another row's objective", "ppo/collecting.py",
          "self.score_moments.update(scores[heard], [sides[order[place]] for place in heard], self._total)",
          "self.score_moments.update(scores, sides, self._total)", WIRING),
    Fault("invariant_11", "a normalised head's mean is not divided by the deviation", "models/roles.py",
          "head.bias.copy_(-torch.tensor(mean) / deviation)", "head.bias.copy_(-torch.tensor(mean))"),
    Fault("keeps_its_weight", "models take the first weights of the list", "ppo/scores.py",
          "self.how, weights[models], self.spread_coef", "self.how, weights[: len(models)], self.spread_coef",
          "tests/ppo/test_score_sources.py"),
    Fault("invariant_08", "the preview picks by the raw score", "ppo/evaluating.py",
          "paid=paid[i]", "paid=scores[i]", WIRING),
    Fault("another_temperature", "a server that says nothing is believed", "ppo/vllm.py",
          '.get("logprobs_mode", "raw_logprobs")', '.get("logprobs_mode", "processed_logprobs")',
          "tests/parity/test_vllm_contract.py"),
    Fault("after_every_step", "vLLM samples from its base", "ppo/vllm_adapter.py",
          "llm.generate = functools.partial(generate, lora_request=request)", "pass",
          "tests/parity/test_vllm_colocated.py"),
    Fault("after_every_step", "vLLM is given an adapter by the number of one that it has read", "ppo/vllm_adapter.py",
          "number = next(numbers)", "number = 1", "tests/parity/test_vllm_colocated.py"),
    Fault("keep_best", "what an earlier training saw is kept", "ppo/saving.py",
          "for log in (self.snapshots and self.snapshots.log, self.watch and self.watch.log):",
          "for log in (self.watch and self.watch.log,):", WIRING),
    Fault("whitening", "whitened rewards lose their mean", "ppo/objectives.py",
          "white if shift_mean else white + moments.mean",
          "white if shift_mean else values * torch.rsqrt(moments.variance + 1e-8)", "tests/ppo/test_objectives.py"),
    Fault("scalar_head", "heads are rounded by autocast", "models/roles.py",
          "torch.autocast(hidden.device.type, enabled=False)", "contextlib.nullcontext()",
          "tests/models/test_logprobs.py"),
    Fault("equal_log_softmax", "sums of words before keep their scale as a larger logit comes", "models/logprobs.py",
          "totals_N[rows] = scale * totals_N[rows]", "totals_N[rows] = totals_N[rows]",
          "tests/models/test_logprobs.py"),
    Fault("equal_log_softmax", "entropies of words before stay as a larger logit comes", "models/logprobs.py",
          " + grown * totals_N[rows]", "", "tests/models/test_logprobs.py"),
    Fault("equal_log_softmax", "a frozen head's gradient of words before keeps its scale", "models/logprobs.py",
          "expected_NH[rows].mul_(scale[:, None])", "expected_NH[rows]", "tests/models/test_logprobs.py"),
    Fault("equal_log_softmax", "a trained head's gradient knows no temperature", "models/logprobs.py",
          "logits.mul_(gradient_N[rows, None] / ctx.temperature)", "logits.mul_(gradient_N[rows, None])",
          "tests/models/test_logprobs.py"),
    Fault("not_steered", "the controller passes over the first rollout after the warm-up", "ppo/collecting.py",
          "if self.rollouts_done >= self.args.value_warmup_rollouts:",
          "if self.rollouts_done > self.args.value_warmup_rollouts:", "tests/parity/test_ppo_soundness.py"),
    Fault("has_recovered", "a side has recovered once one measure has", "ppo/watch.py",
          "all(change.p > STILL_WORSE for change in own)", "any(change.p > STILL_WORSE for change in own)",
          "tests/ppo/test_watch.py"),
    Fault("adaptive_kl_moves", "the horizon counts steps for rollouts", "ppo/config.py",
          "responses = self.max_steps // self.steps_per_rollout * rollout",
          "responses = self.max_steps * rollout", "tests/ppo/test_ppo_config.py"),
    Fault("however_short", "the horizon may be shorter than a rollout", "ppo/config.py",
          "return max(min(10_000, responses // 20), rollout)", "return max(1, min(10_000, responses // 20))",
          "tests/ppo/test_ppo_config.py"),
    Fault("ptx_adds", "demonstrations do not see their prompt", "models/roles.py",
          "plain_head(ptx_input_ids, ptx_attention_mask, labels", "plain_head(ptx_input_ids, ptx_mask, labels",
          "tests/parity/test_ppo_options.py"),
    Fault("noise_by_another_name", "noise is read with the same random numbers", "ppo/soundness.py",
          "torch.manual_seed(seed)", "torch.manual_seed(0)", "tests/parity/test_ppo_soundness.py"),
    Fault("learns_the_optimum", "the penalty is paid by its square", "ppo/objectives.py",
          "rewards = -kl_coef * kl_BR", "rewards = -kl_coef * kl_BR * kl_BR.abs()",
          "tests/parity/test_closed_form.py::test_ppo_learns_the_optimum[beta .3]"),
    Fault("one_objective", "no objective is known before all are", "ppo/scores.py",
          "return any(moments.count for moments", "return all(moments.count for moments",
          "tests/ppo/test_score_moments.py"),
    Fault("decoding_that_is_not", "decoding that is no number passes", "ppo/soundness.py",
          "if not apart <= DECODES[in_float32]:", "if apart > DECODES[in_float32]:",
          "tests/parity/test_ppo_soundness.py"),
    Fault("looks_worse", "a snapshot that looks worse is kept", "ppo/snapshots.py",
          'return not row.get("worse") and not row.get("doubtful")', 'return not row.get("worse")',
          "tests/ppo/test_snapshots.py"),
    Fault("drawn_anew", "every micro-batch has the same demonstrations", "ppo/rollout.py",
          "(len(batch.input_ids),), generator=generator)",
          "(len(batch.input_ids),), generator=torch.Generator().manual_seed(seed))", WIRING),
    Fault("invariant_11", "normalised scores are logged as the scores", "ppo/rollout.py",
          'columns["objective/scores"].append(batch.raw_scores)', 'columns["objective/scores"].append(batch.scores)',
          WIRING),
    Fault("previews_interval", "the preview's interval counts different prompts alone", "ppo/preview.py",
          "np.float64), numbered(clusters))",
          "np.float64), range(len(differences)))", "tests/ppo/test_watch.py"),
    Fault("not_finite", "infinite scores pass", "ppo/guards.py",
          "bad = (~torch.isfinite(scores_B)).nonzero()", "bad = torch.isnan(scores_B).nonzero()",
          "tests/ppo/test_guards.py"),
    Fault("half_precision_logits", "sampling's log-probabilities in the model's type", "models/random_draws.py",
          "scores_BV = logits_BV.float()", "scores_BV = logits_BV", "tests/ppo/test_sampling.py"),
    Fault("half_precision_logits", "sampling's entropies in the model's type", "models/random_draws.py",
          "(logits_BV.float() / temperature)", "(logits_BV / temperature)", "tests/ppo/test_sampling.py"),
    Fault("values_and_entropies", "values kept from sampling go to the rows that are left", "models/decoding_loop.py",
          "kept[name][rows_N, step] = of_rows_N", "kept[name][: len(rows_N), step] = of_rows_N",
          "tests/models/test_sampler.py"),
    Fault("values_and_entropies", "values kept from sampling are of a prompt's first piece", "models/decoding_loop.py",
          "output.last_hidden_state[:, -1]", "output.last_hidden_state[:, 0]", "tests/models/test_sampler.py"),
    Fault("keeps_the_lines", "the log lines of the checkpoint's own step are dropped", "checkpoints.py",
          'known["step"] > step or', 'known["step"] >= step or',
          "tests/ppo/test_checkpoint.py"),
    Fault("every_number_logged_of_an_update", "the value's clipped share counts the others", "ppo/objectives.py",
          "return TokenLoss(0.5 * torch.max(unclipped, clipped), clipped > unclipped)",
          "return TokenLoss(0.5 * torch.max(unclipped, clipped), unclipped > clipped)", WIRING),
    Fault("every_number_logged_of_a_rollout", "k3 is logged of the other ratio", "ppo/rollout.py",
          'k3 = objectives.kl_estimate(batch.old_logprobs, batch.ref_logprobs, "k3") * mask',
          'k3 = objectives.kl_estimate(batch.ref_logprobs, batch.old_logprobs, "k3") * mask', WIRING),
    Fault("told_once", "what an earlier training watched is kept", "ppo/saving.py",
          "for log in (self.snapshots and self.snapshots.log, self.watch and self.watch.log):",
          "for log in (self.snapshots and self.snapshots.log,):", "tests/parity/test_ppo_watch.py"),
    Fault("ptx_adds", "demonstrations' prompts are learned too", "ppo/rollout.py",
          'list(row.get("assistant_masks") or [1] * len(ids)) + [0] * missing', "[1] * len(ids) + [0] * missing",
          "tests/parity/test_ppo_options.py"),
    Fault("kept_back", "the prompts kept back are trained on too", "methods/prompts.py",
          "return [p for i, p in enumerate(prompts) if i not in chosen], [prompts[i] for i in sorted(chosen)]",
          "return list(prompts), [prompts[i] for i in sorted(chosen)]", "tests/ppo/test_kept_back.py"),
    Fault("behind_the_thought", "reward models read the thought", "ppo/collecting.py",
          "if self._heard_ids is not None:", "if False:", "tests/ppo/test_thoughts_in_ppo.py"),
    Fault("behind_the_thought", "a cut reply is scored as if it had stopped", "models/inference.py",
          "found[i] = row.ids if replies[i].stopped else row.ids[:-1]", "found[i] = row.ids",
          "tests/ppo/test_thoughts_in_ppo.py"),
    Fault("tell_them_apart", "the watch counts the thought's tokens", "ppo/evaluating.py",
          "length=len(replies[i].said_ids)", "length=len(replies[i].ids)", "tests/ppo/test_thoughts_in_ppo.py"),
    Fault("written_as_the_template", "the thought that the prompt opens is opened twice", "models/encoding.py",
          "begin = [] if opened else", "begin =", "tests/models/test_thoughts.py"),
    Fault("every_turn_of_a_conversation", "a rewritten turn is context alone", "models/encoding.py",
          "rows.insert(0, row)", "rows or rows.insert(0, row)", "tests/models/test_thoughts.py"),
    *(Fault(*fault) for fault in OF_METHODS),
    *(Fault(*fault) for fault in OF_RECOVERY),
]  # fmt: skip


class WrongPackageError(Exception):
    """Some process did not import the planted package, so that its verdict is about another one."""


IMPORTED = "imported.txt"  # beside the planted package: the package of every process that imported one, a line each
NOTE_IMPORTS = f"""
import sys
from pathlib import Path


class NoteImports:
    def find_spec(name, path=None, target=None):
        if name == "llm_rlhf":
            others = (f.find_spec(name, path, target) for f in sys.meta_path if f is not NoteImports)
            found = next(filter(None, others), None)
            with Path(__file__).with_name({IMPORTED!r}).open("a") as file:
                file.write(f"{{found and found.origin}}\\n")


sys.meta_path.insert(0, NoteImports)
"""


def plant(fault: Fault | None, folder: Path) -> None:
    """A copy of the package with the fault in it, and beside it what notes imports as soon as Python starts."""
    shutil.copytree(ROOT / "llm_rlhf", folder / "llm_rlhf", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").symlink_to(ROOT / "data")  # what the package looks for in its own clone
    (folder / "sitecustomize.py").write_text(NOTE_IMPORTS, encoding="utf-8")
    if fault is not None:
        path = folder / "llm_rlhf" / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            raise ValueError(
                f"{fault.what!r}: its line stands {text.count(fault.old)} times in {fault.file}, not once."
            )
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def failures(folder: Path, tests: list[str], words: str) -> tuple[int, list[str]]:
    """Exit code of pytest on the planted package, and the names of the tests that failed.

    Raises:
        WrongPackageError: where it, or a process that it started, imported another package.
    """
    paths = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}  # safe: no folder of a script or of `-m` before it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"),
         "-k", words, *(str(ROOT / test) for test in tests)],
        cwd=folder, env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    check_imports(folder)
    return done.returncode, re.findall(r"^FAILED \S+?::(\S+)", done.stdout, re.MULTILINE)


def check_imports(folder: Path) -> None:
    """Raises WrongPackageError unless every process that imported the package, one at least, took the planted one."""
    log = folder / IMPORTED
    imported = set(log.read_text(encoding="utf-8").splitlines()) if log.exists() else set()
    if imported != {str(folder / "llm_rlhf" / "__init__.py")}:
        raise WrongPackageError(f"the tests imported {', '.join(sorted(imported)) or 'no package at all'}")


def judge(fault: Fault) -> str | WrongPackageError | None:
    """None where the fault is caught, else why not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        try:
            plant(fault, folder)
            code, failed = failures(folder, [fault.tests], fault.invariant)
        except ValueError as error:
            return str(error)
        except WrongPackageError as error:
            return error
    if code == 1 and any(fault.invariant in test for test in failed):
        return None
    return "no test failed" if code == 0 else f"pytest ended with code {code}, failing {failed or 'nothing'}"


def main(words: list[str]) -> int:
    """0 where every fault is caught, 1 where one is missed, 2 where something else than the planted package ran."""
    chosen = [f for f in FAULTS if not words or any(w in f"{f.invariant} {f.what} {f.file} {f.tests}" for w in words)]
    if not chosen:
        print(f"No fault's name, file or test holds {' or '.join(words)}.")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        plant(None, folder)
        sound = " or ".join(sorted({f.invariant for f in chosen}))
        try:
            code, failed = failures(folder, sorted({f.tests for f in chosen}), sound)
        except WrongPackageError as error:
            print(f"Nothing was judged: {error}, not the copy in {folder}.")
            return 2
    if code != 0:
        print(f"Without any fault the tests should pass; pytest ended with code {code}: {failed}")
        return 1
    missed, wrong = 0, 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        for fault, reason in zip(chosen, pool.map(judge, chosen), strict=True):
            unjudged = isinstance(reason, WrongPackageError)
            missed, wrong = missed + (reason is not None and not unjudged), wrong + unjudged
            verdict = "caught" if reason is None else "UNJUDGED" if unjudged else "MISSED"
            print(f"{verdict}  {fault.invariant}  {fault.what}", flush=True)
            if reason is not None:
                print(f"        {reason}", flush=True)
    print(f"{len(chosen) - missed - wrong} of {len(chosen)} planted faults caught")
    return 2 if wrong else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
