"""Reading and sampling with trained roles: one base in memory, rows in batches of like length, processes sharing.

Every function takes rows in the caller's order and returns them in it, whatever the batch size, the padding or the
number of processes. Layout: B rows, T tokens, R response tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model
from tqdm.auto import tqdm
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.data.rows import Conversation
from llm_rlhf.models.base import load_causal_lm, lora_config
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.roles import POLICY, active_adapters, add_reward_role, add_role_forward, role_scores
from llm_rlhf.processes import processes
from llm_rlhf.recipe import ModelSection

Item = TypeVar("Item")
Result = TypeVar("Result")


def load_roles(
    base: str | Path,
    section: ModelSection,
    tokenizer: Any,
    rewards: dict[str, Path],
    policy: Path | None = None,
    temperature: float = 1.0,
) -> Any:
    """The base with reward roles by name and, where given, the policy's adapter, ready to read and to sample.

    Args:
        rewards: role name to the folder RewardTrainer's adapter was saved in.
        temperature: what `reply_logprobs` divides logits by.
    """
    model = load_causal_lm(base, section, tokenizer)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    if policy is None:
        model = get_peft_model(model, lora_config(section, "CAUSAL_LM"))  # a fresh adapter adds nothing
    else:
        model = PeftModel.from_pretrained(model, policy, adapter_name=POLICY)
    if section.quantization == "none":
        model.to(processes().device)
    for name, adapter in rewards.items():
        add_reward_role(model, adapter, name)
    add_role_forward(model.get_base_model(), temperature)
    model.requires_grad_(False)
    return model.eval()


def score_ids(model: Any, name: str, rows: Sequence[list[int]], pad_token_id: int, batch_size: int = 32) -> np.ndarray:
    """Score of each row of token ids (prompt and reply) by one reward role; float32, shape (rows,)."""

    def score(batch: list[list[int]]) -> list[float]:
        ids, mask = right_padded(batch, pad_token_id, model.device)
        return role_scores(model, name, ids, mask).tolist()

    return np.asarray(in_batches(rows, score, batch_size, len), dtype=np.float32)


class Reply(NamedTuple):
    prompt_ids: list[int]
    ids: list[int]  # ends with a stop token where the reply stopped by itself
    text: str
    stopped: bool


def sample_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Conversation],
    adapters: list[str],
    *,
    response_length: int,
    temperature: float,
    seed: int,
    batch_size: int = 32,
    progress: str | None = None,
) -> list[Reply]:
    """One sampled reply to every prompt, from the base with these adapters (none: the reference)."""
    stops = model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops)
    batches = 0

    def sample(batch: list[list[int]]) -> list[Reply]:
        nonlocal batches
        batches += 1
        torch.manual_seed(seed + 1000 * processes().process_index + batches)
        ids, mask = left_padded(batch, tokenizer.pad_token_id, model.device)
        with torch.no_grad(), active_adapters(model, adapters):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=response_length,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
            )
        return [
            _reply(tokenizer, prompt, row, stops)
            for prompt, row in zip(batch, out[:, ids.size(1) :].tolist(), strict=True)
        ]

    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    return in_batches(encoded, sample, batch_size, len, progress)


def reply_logprobs(
    model: Any, adapters: list[str], replies: Sequence[Reply], pad_token_id: int, batch_size: int = 32
) -> list[float]:
    """Log-probability of each whole reply, in nats, under the base with these adapters."""

    def read(batch: list[Reply]) -> list[float]:
        R = max(len(r.ids) for r in batch)
        prompts, prompt_mask = left_padded([r.prompt_ids for r in batch], pad_token_id, model.device)
        answers, answer_mask = right_padded([r.ids for r in batch], pad_token_id, model.device)
        assert answers.size(1) == R
        with torch.no_grad(), active_adapters(model, adapters):
            answer = model(
                input_ids=torch.cat([prompts, answers], 1),
                attention_mask=torch.cat([prompt_mask, answer_mask], 1),
                response_mask=answer_mask.bool(),
                with_value=False,
                with_entropy=False,
            )
        return answer["logprobs"].double().sum(1).tolist()

    return in_batches(replies, read, batch_size, lambda r: len(r.prompt_ids) + len(r.ids))


def in_batches(
    items: Sequence[Item],
    function: Callable[[list[Item]], list[Result]],
    batch_size: int,
    length: Callable[[Item], int],
    progress: str | None = None,
) -> list[Result]:
    """`function` over batches of items of like length, shared out over the processes; results in the items' order."""
    state = processes()
    mine = range(state.process_index, len(items), state.num_processes)
    by_length = sorted(mine, key=lambda i: length(items[i]), reverse=True)  # the largest first: memory fails early
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    found: list[tuple[int, Result]] = []
    for batch in _shown(batches, progress if state.is_main_process else None):
        found += zip(batch, function([items[i] for i in batch]), strict=True)
    everything = dict(gather_object(found))
    return [everything[i] for i in range(len(items))]


def left_padded(rows: Sequence[list[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (B, T) each, padded on the left to the longest row."""
    T = max(len(row) for row in rows)
    ids = [[pad_token_id] * (T - len(row)) + list(row) for row in rows]
    mask = [[0] * (T - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def right_padded(rows: Sequence[list[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (B, T) each, padded on the right to the longest row."""
    T = max(len(row) for row in rows)
    ids = [list(row) + [pad_token_id] * (T - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (T - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _reply(tokenizer: Any, prompt_ids: list[int], sampled: list[int], stops: list[int]) -> Reply:
    end = next((i + 1 for i, token in enumerate(sampled) if token in stops), None)
    ids = sampled if end is None else sampled[:end]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Reply(prompt_ids, ids, text, end is not None)


def _shown(batches: list[list[int]], progress: str | None) -> Iterator[list[int]]:
    return iter(tqdm(batches, desc=f"  {progress}", leave=False) if progress else batches)
