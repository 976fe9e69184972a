"""Reading and sampling with trained roles: one base in memory, rows in batches of like length, processes sharing.

Every function takes rows in the caller's order and returns them in it, whatever the batch size, the padding or the
number of processes. Layout: B rows, T tokens, R response tokens.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.data.rows import Conversation, Message
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.launch import processes
from llm_rlhf.models.adapters import POLICY, active_adapters, check_saved, grow_for, onto_device_of
from llm_rlhf.models.base import load_causal_lm
from llm_rlhf.models.encoding import Encoded, encode_prompts, encode_turns
from llm_rlhf.models.lora_sums import sum_in_products
from llm_rlhf.models.memory import Portion, reading_budget
from llm_rlhf.models.random_draws import prompt_uniforms
from llm_rlhf.models.reply_decoding import ReplyDecoding
from llm_rlhf.models.roles import add_reward_role, add_role_forward, role_scores
from llm_rlhf.models.thoughts import KEY, read_response
from llm_rlhf.models.whole import empty_config
from llm_rlhf.progress import bar
from llm_rlhf.recipe.sections import ModelSection

Item = TypeVar("Item")
Result = TypeVar("Result")


def load_roles(
    base: str | Path,
    section: ModelSection,
    tokenizer: Any,
    rewards: dict[str, Path],
    policy: Path | None = None,
    temperature: float = 1.0,
    alone: bool = False,
) -> Any:
    """The base with reward roles by name and, where given, the policy's adapter, ready to read and to sample.

    Args:
        rewards: role name to the folder RewardTrainer's adapter was saved in.
        temperature: what `reply_logprobs` divides logits by.
        alone: the base is only read with the policy's adapter on, which may change it in place.
    """
    model = load_causal_lm(base, section, tokenizer)
    if policy is not None:
        grow_for(model, policy)
        check_saved(model, policy, "policy adapter", alone)
    model.forward_of_its_own = model.forward  # what `at_temperature_one` starts from
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    if policy is None:
        model = get_peft_model(model, empty_config("CAUSAL_LM"))
    else:
        model = PeftModel.from_pretrained(model, policy, adapter_name=POLICY, **onto_device_of(model))
    if section.quantization == "none":
        model.to(processes().device)
    for name, adapter in rewards.items():
        add_reward_role(model, adapter, name)
    sum_in_products(model)
    add_role_forward(model.get_base_model(), temperature)
    model.requires_grad_(False)
    return model.eval()


def score_ids(model: Any, name: str, rows: Sequence[list[int]], pad_token_id: int, batch_size: int = 32) -> np.ndarray:
    """Score of each row of token ids (prompt and reply) by one reward role; float32, shape (rows,)."""

    def score(batch: list[list[int]]) -> list[float]:
        ids, mask = right_padded(batch, pad_token_id, model.device)
        return role_scores(model, name, ids, mask).tolist()

    found = in_batches(rows, score, batch_size, len, device=model.device.type)
    return np.asarray(found, dtype=np.float32)


def check_batch_invariance(
    model: Any, name: str, rows: Sequence[list[int]], pad_token_id: int, exact: bool, tolerance: float = 1e-4
) -> float:
    """By how much a reward role's scores move when rows are read one by one or all together, padded on either side.

    Args:
        exact: the model is in float32, where more than `tolerance` means that padding leaks into the scores.

    Raises:
        ValueError: then; a score that depends on its batch measures the batch (RewardBench #137: an accuracy of .429,
            .476 or .480 at batch size 1, 2 or 3).
    """
    alone = score_ids(model, name, rows, pad_token_id, batch_size=1)
    together = [right_padded(rows, pad_token_id, model.device), left_padded(rows, pad_token_id, model.device)]
    moved = max(float(np.abs(role_scores(model, name, *batch).cpu().numpy() - alone).max()) for batch in together)
    if exact and moved > tolerance:
        raise ValueError(
            f"The scores of the reward model '{name}' move by {moved:.2g} with the batch and its padding (at most "
            f"{tolerance:g} is rounding). Its architecture does not mask padding; it cannot judge."
        )
    return moved


class Reply(NamedTuple):
    prompt_ids: list[int]
    ids: list[int]  # with the thought; ends with a stop token where the reply stopped by itself
    text: str  # behind the thought
    stopped: bool
    thought: str = ""
    start: int = 0  # where in `ids` the text begins

    @property
    def said_ids(self) -> list[int]:
        return self.ids[self.start :]


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
    known: "ReplyCache | None" = None,
    decoding: ReplyDecoding | None = None,
) -> list[Reply]:
    """One sampled reply to every prompt, from the base with these adapters (none: the reference).

    A reply is a function of the model, its prompt, the seed and how often the same prompt stood before it: neither the
    batch size nor the other prompts nor the number of processes changes it, but for the last bits of the logits.

    Args:
        temperature: 0 takes the most likely token.
        known: replies of an earlier, perhaps interrupted, call; new ones are added to it batch by batch.
        decoding: the model's, where it is asked more than once; None: compiled where this call alone makes it pay.
    """
    stops = model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops)
    encoded = encode_prompts(tokenizer, prompts)
    seen: Counter[tuple[int, ...]] = Counter()
    asked: list[tuple[list[int], int]] = []
    for ids in encoded:
        asked.append((ids, seen[tuple(ids)]))
        seen[tuple(ids)] += 1
    kept = known.known_of(asked) if known is not None else {}
    missing = [i for i in range(len(asked)) if i not in kept]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=response_length, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    decoding = decoding or ReplyDecoding(model)
    sampler = decoding.settle(adapters, len(asked), len(kept), temperature, batch_size, response_length)
    compiled = sampler.compiled
    most = None if compiled is None else lambda length: compiled.fitted(length - response_length, response_length)

    def sample(batch: list[tuple[list[int], int]]) -> list[list[int]]:
        ids, mask = left_padded([prompt_ids for prompt_ids, _ in batch], tokenizer.pad_token_id, model.device)
        uniforms = [prompt_uniforms(seed, *ask, response_length) for ask in batch]
        loop.uniforms_BS = torch.from_numpy(np.stack(uniforms)).to(model.device)
        out = sampler.base.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        sampled = [until_stop(row, stops) for row in out[:, ids.size(1) :].tolist()]
        if known is not None:
            known.add(batch, sampled)
        return sampled

    with torch.no_grad(), active_adapters(model, adapters), sampler(seed=0) as loop:
        new = in_batches(
            [asked[i] for i in missing], sample, batch_size, lambda ask: len(ask[0]) + response_length, progress,
            most=most,
        )  # fmt: skip
    found = kept | dict(zip(missing, new, strict=True))
    return [reply_of(tokenizer, prompt_ids, found[i], stops) for i, (prompt_ids, _) in enumerate(asked)]


def ids_to_score(tokenizer: Any, prompts: Sequence[Conversation], replies: Sequence[Reply]) -> list[list[int]]:
    """Token ids of prompts and replies as a reward model reads them: as sampled, or, behind a thought, encoded anew."""
    found = [reply.prompt_ids + reply.ids for reply in replies]
    thinking = [i for i, reply in enumerate(replies) if reply.start]
    turns: list[Message] = [{"role": "assistant", "content": replies[i].text, KEY: ""} for i in thinking]
    encoded = encode_turns(tokenizer, [prompts[i] for i in thinking], turns)
    for i, row in zip(thinking, encoded, strict=True):
        found[i] = row.ids if replies[i].stopped else row.ids[:-1]
    return found


class ReplyCache:
    """Sampled replies in a JSON-lines file, so that an interrupted evaluation goes on where it stopped.

    Args:
        path: one file a process is written, `path` with the process' number before the suffix; all are read.
        of: what else a reply depends on, plain values: the policy's weights, its template, the decoding, the seed.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.of = json.dumps(of, sort_keys=True)
        self.known: dict[str, list[int]] = {}
        for file in sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")):
            for _, line in lines_of(file.read_bytes()):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # half a line: it was being written
                    row = parse_json(line)
                    self.known[str(row["key"])] = [int(token) for token in row["ids"]]
        processes().wait_for_everyone()  # all have read before any writes, so that all know the same
        self.path = path.with_stem(f"{path.stem}-{processes().process_index}")
        path.parent.mkdir(parents=True, exist_ok=True)

    def known_of(self, asked: Sequence[tuple[list[int], int]]) -> dict[int, list[int]]:
        """The replies that are known, by their number in `asked` (prompt ids, how often the prompt stood before)."""
        keys = (self._key(*ask) for ask in asked)
        return {i: self.known[key] for i, key in enumerate(keys) if key in self.known}

    def add(self, asked: Sequence[tuple[list[int], int]], sampled: Sequence[list[int]]) -> None:
        new = {self._key(*ask): ids for ask, ids in zip(asked, sampled, strict=True)}
        rows = [json.dumps({"key": key, "ids": ids}) for key, ids in new.items()]
        with self.path.open("a", encoding="ascii") as file:
            file.write("".join(f"\n{row}\n" for row in rows))  # a newline first: half a line may stand there
        self.known.update(new)

    def _key(self, prompt_ids: list[int], occurrence: int) -> str:
        return hashlib.sha256(repr((self.of, list(prompt_ids), occurrence)).encode()).hexdigest()


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

    return in_batches(replies, read, batch_size, lambda r: len(r.prompt_ids) + len(r.ids), device=model.device.type)


def given_logprobs(
    model: Any, adapters: list[str], rows: Sequence[Encoded], pad_token_id: int, batch_size: int = 32
) -> list[float]:
    """Log-probability of each given reply, in nats, at temperature 1 whatever the policy is sampled at."""
    replies = [Reply(row.prompt_ids, row.reply_ids, "", True) for row in rows]
    with at_temperature_one(model):
        return reply_logprobs(model, adapters, replies, pad_token_id, batch_size)


@contextlib.contextmanager
def at_temperature_one(model: Any) -> Iterator[None]:
    """While it lasts, what `load_roles` gave reads the model's own log-probabilities, not those it is sampled from."""
    base = model.get_base_model()
    tempered = base.forward
    base.forward = base.forward_of_its_own
    try:
        add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
        add_role_forward(base, 1.0)
        yield
    finally:
        base.forward = tempered


def in_batches(
    items: Sequence[Item],
    function: Callable[[list[Item]], list[Result]],
    batch_size: int,
    length: Callable[[Item], int],
    progress: str | None = None,
    device: str | None = None,
    most: Callable[[int], int] | None = None,
) -> list[Result]:
    """`function` over batches of items of like length, shared out over the processes; results in the items' order.

    Args:
        device: where all tokens of a batch are read in one forward; None: they are not.
        most: how many items go together at most where the longest is of so many tokens; None: a batch.
    """
    state = processes()
    mine = range(state.process_index, len(items), state.num_processes)
    by_length = sorted(mine, key=lambda i: length(items[i]), reverse=True)  # the largest first: memory fails early
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    found: list[tuple[int, Result]] = []
    budget = None if device is None else reading_budget(device)
    lower = "evaluate.response_length or model.context_length"
    lower += ", or set evaluate.decoding: plain" if most is not None else ""
    portion = Portion("reading and sampling", lower, tokens=budget)

    def read(rows: Sequence[int]) -> list[tuple[int, Result]]:
        return list(zip(rows, function([items[i] for i in rows]), strict=True))

    for batch in _shown(batches, progress if state.is_main_process else None):
        longest = max(length(items[i]) for i in batch)
        for part in portion.run(read, batch, longest, None if most is None else most(longest)):
            found += part
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


def until_stop(sampled: list[int], stops: list[int]) -> list[int]:
    """The row up to its first stop token, that included; what `generate` padded it with is cut."""
    end = next((i + 1 for i, token in enumerate(sampled) if token in stops), None)
    return sampled if end is None else sampled[:end]


def reply_of(tokenizer: Any, prompt_ids: list[int], ids: list[int], stops: Sequence[int]) -> Reply:
    """What was sampled after a prompt, its thought told apart."""
    said = read_response(tokenizer, prompt_ids, ids)
    return Reply(prompt_ids, ids, said.reply, bool(ids) and ids[-1] in stops, said.thought, said.start)


def _shown(batches: list[list[int]], progress: str | None) -> Iterator[list[int]]:
    return iter(bar(batches, desc=progress, leave=False) if progress else batches)
