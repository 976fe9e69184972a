"""Scores from trained reward models: those of a run, and any sequence-classification model with one label.

1. `from_pretrained` loads one base with the adapters of one or several folders, or one whole model.
2. A few made-up rows are read to find out how this architecture may be read (`_find_reading`).
3. `score` cuts what does not fit at turn boundaries, reads conversations of like length together, those with one prompt
   in one row, and gives every score back in the caller's order. No score depends on the others of its batch.

The score of a run's own adapter is PPO's `role_scores` of the same tokens. That of any other model is what its own
forward gives for the conversation alone, as its chat template prints it.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor

from llm_rlhf.data.checks import BadRow, check_text, extract, fit_conversation
from llm_rlhf.data.messages import check_messages
from llm_rlhf.data.rows import Conversation
from llm_rlhf.models.architecture import positions_of
from llm_rlhf.models.encoding import encode_replies
from llm_rlhf.models.inference import right_padded
from llm_rlhf.models.roles import apply_head, hidden_states
from llm_rlhf.models.thoughts import split_thought, thought_marks
from llm_rlhf.progress import bar
from llm_rlhf.reward.loading import Loaded, Loading, Member, load_adapters, load_whole, local_adapter
from llm_rlhf.reward.packing import Group, attention_mask, group_rows, pack, token_budget_batches

# Tokens of a batch. A CPU is fastest while a batch stays in its caches; an accelerator wants more work at once.
CPU_BUDGET, ACCELERATOR_BUDGET = 1024, 16384
LONG = 600  # tokens of the prompt behind which packing is tried out: beyond GPT-Neo's window of 256

Scores: TypeAlias = NDArray[np.float32]
Scored: TypeAlias = Conversation | tuple[str | Conversation, str]

# How a model is read, from the fastest to the surest:
#   packed   its trunk and a float32 head, the prompt of several replies once
#   rows     its trunk and a float32 head, a row for each conversation
#   whole    its own forward, padded
#   alone    its own forward, one conversation at a time
Reading: TypeAlias = Literal["packed", "rows", "whole", "alone"]


class RewardModel:
    """A reward model, or an ensemble of adapters on one base, that scores conversations.

        rm = RewardModel.from_pretrained("runs/quickstart/reward/joint")
        rm.score([("What is the capital of France?", "Paris.")])

    A conversation is a list of messages that ends with the assistant's, or a pair of a prompt (text, or messages) and a
    reply.

    Attributes:
        model, tokenizer: as transformers and PEFT loaded them.
        members: one for each adapter, with its normalisation and its temperature.
        weights: a score is the sum of the members' scores, each times its weight.
        max_length: tokens of a conversation at most; a longer one loses its oldest turns.
        reading: how the architecture is read: see `Reading`.
    """

    def __init__(self, loaded: Loaded, weights: Sequence[float] | None = None, max_length: int | None = None) -> None:
        """Use `from_pretrained`."""
        self.model, self.tokenizer, self.members, self._ends_with_reply = loaded
        k = len(self.members)
        self.weights = np.asarray([1 / k] * k if weights is None else weights, dtype=np.float64)
        if self.weights.shape != (k,) or not np.isfinite(self.weights).all():
            raise ValueError(f"weights is {weights}; give one finite number for each of the {k} adapters.")
        self._plain = self.model if self.members[0].adapter is None else self.model.get_base_model()
        self._config = self._plain.config.get_text_config()
        self._dtype = self._plain.get_input_embeddings().weight.dtype  # of the hidden states; never quantised
        self.max_length = _limit(max_length, self._config, self.tokenizer)
        self.tokenizer.model_max_length = 2**31  # `score` cuts, and counts; the tokenizer would warn of what is cut
        self.reading: Reading = self._find_reading()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        base: str | Path | None = None,
        weights: Sequence[float] | None = None,
        normalised: bool = True,
        max_length: int | None = None,
        dtype: str | torch.dtype = "float32",
        quantization: str = "none",
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        chat_template: str | Path | None = None,
        trust_remote_code: bool | Sequence[str] = False,
        revision: str | None = None,
    ) -> "RewardModel":
        """Load a reward model to read with; it is never trained.

        Args:
            path: a folder or hub id: a PEFT adapter with its head (`RUN/reward/joint`), or a whole model of
                AutoModelForSequenceClassification with one label. Several adapters on one base are an ensemble.
            base: what the adapters stand on; None: what they name, or the same model in a run that was moved.
            weights: one for each adapter; None: their mean.
            normalised: scores less the mean of reference samples, where the run stored it.
            max_length: tokens of a conversation at most; None: what model and tokenizer take.
            dtype: of the weights. In float32 the batch moves a score by less than 1e-4; in bfloat16 by up to 1.5 % of
                the scores' standard deviation (the quickstart's model, 800 conversations, four budgets, a CPU). The
                head is float32 always.
            quantization: "none", "nf4" or "int8", by bitsandbytes.
            device: None: the accelerator where there is one.
            chat_template: a .jinja file or a template's text, for tokenizers that have none.
            trust_remote_code: run Python that a model's repository ships: True: of `path` and `base`; or of those that
                are named, as the base that an adapter names.
            revision: branch, tag or commit of a hub id.

        Raises:
            ValueError: where it is no reward model with one label, or its parts do not fit together.
        """
        paths = [path] if isinstance(path, str | Path) else list(path)
        given = [str(name) for name in (*paths, *([] if base is None else [base]))]
        trusted = (given if trust_remote_code else []) if isinstance(trust_remote_code, bool) else trust_remote_code
        loading = Loading(dtype, quantization, device, attn_implementation, tuple(trusted), chat_template)
        adapters = [local_adapter(p, revision) for p in paths]
        folders = [folder for folder in adapters if folder is not None]
        if not paths:
            raise ValueError("RewardModel.from_pretrained got an empty list; give at least one adapter.")
        if len(folders) == len(paths):
            return cls(load_adapters(folders, base, normalised, loading), weights, max_length)
        whole = paths[adapters.index(None)]
        if len(paths) > 1 or base is not None:
            raise ValueError(
                f"{whole} is not a PEFT adapter: it has no base, and no ensemble can be made of it. Load it by itself."
            )
        return cls(load_whole(whole, revision, loading), weights, max_length)

    def score(self, conversations: Sequence[Scored], token_budget: int | None = None, progress: bool = False) -> Scores:
        """One score for each conversation, in the caller's order: float32, shape (n,); higher is better.

        Of an ensemble, the members' scores times `weights`, their mean by default.

        Args:
            token_budget: tokens of a batch, padding included; None: what is fast on the device. It decides about speed
                and memory, not about scores; a batch that does not fit the accelerator's memory is halved.
            progress: show a bar.

        Raises:
            ValueError: naming the first conversation that cannot be scored: it is malformed, or not even its last user
                turn and the reply fit into `max_length` tokens.
        """
        each = self.scores_each(conversations, token_budget, progress).astype(np.float64)
        return (each @ self.weights).astype(np.float32)

    def scores_each(
        self,
        conversations: Sequence[Scored],
        token_budget: int | None = None,
        progress: bool = False,
        finished: Sequence[bool] | None = None,
    ) -> Scores:
        """The score of each conversation by each member, float32, shape (n, members); other arguments as for `score`.

        Args:
            finished: whether each reply came to its end; None: all. One that was cut off is read without the stop
                token that its turn ends with, as PPO reads it; models other than a run's own read whole turns alone.
        """
        raw = self._raw(conversations, token_budget, progress, finished=finished)
        mean, deviation = (np.array([getattr(m, what) for m in self.members]) for what in ("mean", "deviation"))
        return ((raw - mean) / deviation).astype(np.float32)

    def doubt(self, conversations: Sequence[Scored], token_budget: int | None = None, progress: bool = False) -> Scores:
        """The standard deviation of the members' scores of each conversation, float32, shape (n,).

        Where scores are wanted too, `scores_each(...)` gives both for one reading: `.mean(1)` and `.std(1, ddof=1)`.

        Raises:
            ValueError: as `score`; and where there is one member, which cannot disagree with itself.
        """
        if len(self.members) < 2:
            raise ValueError("Doubt is the spread of several members; give from_pretrained several adapters.")
        return self.scores_each(conversations, token_budget, progress).std(axis=1, ddof=1)

    def probability(
        self,
        prompts: Sequence[str | Conversation],
        a: Sequence[str],
        b: Sequence[str],
        token_budget: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float64]:
        """How probably people prefer reply `a` to reply `b`, for each prompt; shape (n,).

        The logistic function of the difference of the two scores over the temperature stored with the adapter (1 where
        there is none: what reward models are trained with); of an ensemble, of the members' differences, each over its
        own temperature, times `weights`. Both replies are read behind the same prompt, cut where one of them needs it.

        Warns where held-out pairs told no temperature (all were right, or no more than by chance): it is 1 then, and
        the probabilities are what the model was trained to say, not calibrated.
        """
        if not len(prompts) == len(a) == len(b):
            raise ValueError(f"There are {len(prompts)} prompts, {len(a)} replies a and {len(b)} replies b.")
        pairs = [(prompt, reply) for prompt, *replies in zip(prompts, a, b, strict=True) for reply in replies]
        raw = self._raw(pairs, token_budget, progress, together=2)
        if any(m.temperature is None for m in self.members):
            warnings.warn(
                "These probabilities are not calibrated: the held-out pairs of this reward model told no temperature "
                "(calibration.json beside the adapter says why), so that 1, as in training, is used.",
                stacklevel=2,
            )
        temperatures = np.array([1.0 if m.temperature is None else m.temperature for m in self.members])
        logits = ((raw[0::2] - raw[1::2]) / temperatures) @ self.weights
        return np.exp(-np.logaddexp(0.0, -logits))

    def _raw(
        self,
        conversations: Sequence[Scored],
        token_budget: int | None,
        progress: bool,
        together: int = 1,
        finished: Sequence[bool] | None = None,
    ) -> NDArray[np.float64]:
        """The scores as trained, before normalisation, (n, members). Every `together` rows have one prompt."""
        if token_budget is None:
            token_budget = CPU_BUDGET if self._plain.device.type == "cpu" else ACCELERATOR_BUDGET
        if token_budget < 1:
            raise ValueError(f"token_budget is {token_budget}; it must be at least 1.")
        keys, ids = self._encode(conversations, together)
        if finished is not None and self._ends_with_reply:
            ids = [row if done else row[:-1] for row, done in zip(ids, finished, strict=True)]
        scores = np.full((len(ids), len(self.members)), np.nan)
        if self.reading in ("packed", "rows"):
            ids = [self._up_to_last(row) for row in ids]
        packs = self.reading == "packed"
        groups = group_rows(ids, keys) if packs else [Group([i], [], [row]) for i, row in enumerate(ids)]
        batches = list(token_budget_batches(groups, 1 if self.reading == "alone" else token_budget))
        shown = bar(
            total=len(ids) * len(self.members), desc="scoring", unit=" conversations", disable=not progress, leave=False
        )
        with shown as scored:
            for column, member in enumerate(self.members):
                self._activate(member)
                for batch in batches:
                    rows = [i for group in batch for i in group.rows]
                    scores[rows, column] = self._read(batch, member)
                    scored.update(len(rows))
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if bad.size:
            raise ValueError(
                f"conversations[{bad[0]}] has a score that is not finite ({len(bad)} of {len(ids)} have); where dtype "
                "is float16, load the model in bfloat16 or float32."
            )
        return scores

    def _encode(self, conversations: Sequence[Scored], together: int) -> tuple[list[str], list[list[int]]]:
        """Of each conversation what names its prompt, and its token ids."""
        if isinstance(conversations, str | dict) or any(isinstance(c, dict) for c in conversations):
            raise ValueError("conversations is a single conversation; score takes a list of them.")
        split = [_split(i, conversation) for i, conversation in enumerate(conversations)]
        prompts, replies = [prompt for prompt, _ in split], [reply for _, reply in split]
        ids = self._ids(prompts, replies)
        cut = 0
        for start in range(0, len(ids), together):
            rows = range(start, start + together)
            if any(len(ids[i]) > self.max_length for i in rows):
                prompt = self._cut(rows, prompts[start], [replies[i] for i in rows])
                for i in rows:
                    prompts[i], ids[i] = prompt, self._template([prompt], [replies[i]])[0]
                cut += together
        if cut:
            warnings.warn(
                f"{cut} of {len(ids)} conversations were longer than {self.max_length} tokens and lost their oldest "
                "turns.",
                stacklevel=5,
            )
        return [repr(prompt) for prompt in prompts], ids

    def _ids(self, prompts: list[Conversation], replies: list[str]) -> list[list[int]]:
        """Token ids of the conversations; where the template refuses one, a ValueError that names it."""
        try:
            return self._template(prompts, replies)
        except (TemplateError, ValueError, TypeError):
            for i, row in enumerate(zip(prompts, replies, strict=True)):
                try:
                    self._template([row[0]], [row[1]])
                except (TemplateError, ValueError, TypeError) as error:
                    raise ValueError(f"conversations[{i}]: the chat template refuses it: {error}") from None
            raise

    def _template(self, prompts: list[Conversation], replies: list[str]) -> list[list[int]]:
        if not prompts:
            return []
        if self._ends_with_reply:
            return [row.ids for row in encode_replies(self.tokenizer, prompts, replies)]
        marks = thought_marks(self.tokenizer)
        said = [split_thought(reply, marks)[1] for reply in replies]
        whole = [[*p, {"role": "assistant", "content": reply}] for p, reply in zip(prompts, said, strict=True)]
        return list(self.tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"])

    def _cut(self, rows: range, prompt: Conversation, replies: list[str]) -> Conversation:
        """The prompt behind which every reply fits."""

        def longest(cut: Conversation) -> int:
            return max(map(len, self._template([cut] * len(replies), replies)))

        fitted = fit_conversation(prompt, longest, self.max_length)
        if fitted is None:
            raise ValueError(
                f"conversations[{rows[0]}]"
                + (f" or [{rows[-1]}]" if len(rows) > 1 else "")
                + f" does not fit into {self.max_length} tokens, not even its last user turn and the reply by "
                "themselves; shorten it or leave it out."
            )
        return fitted

    def _up_to_last(self, row: list[int]) -> list[int]:
        """The row up to the token that transformers' ForSequenceClassification reads: the last that is not the pad."""
        end = len(row)
        while end > 1 and row[end - 1] == self._config.pad_token_id:
            end -= 1
        return row[:end]

    def _activate(self, member: Member) -> None:
        if member.adapter is not None:
            self.model.set_adapter(member.adapter, inference_mode=True)

    def _read(self, groups: list[Group], member: Member) -> list[float]:
        """The scores of a batch, group by group; in two halves where it is too much for the accelerator."""
        try:
            return self._score_groups(groups, member)
        except torch.OutOfMemoryError as error:
            rows = sum(len(group.rows) for group in groups)
            if rows == 1:
                raise torch.OutOfMemoryError(
                    f"One conversation of {len(groups[0])} tokens does not fit into the accelerator's memory. Lower "
                    "max_length, or load the model in bfloat16 or with quantization='nf4'."
                ) from error
        torch.accelerator.empty_cache()
        if len(groups) == 1:
            (group,) = groups
            groups = [Group([i], [], [group.prefix + tail]) for i, tail in zip(group.rows, group.tails, strict=True)]
        half = len(groups) // 2
        return self._read(groups[:half], member) + self._read(groups[half:], member)

    @torch.inference_mode()
    def _score_groups(self, groups: list[Group], member: Member) -> list[float]:
        if self.reading in ("whole", "alone"):
            return self._own_forward([group.tails[0] for group in groups]).tolist()
        assert member.head is not None
        return apply_head(member.head, self._last_states(groups)).tolist()

    def _last_states(self, groups: list[Group]) -> Tensor:
        """The hidden states that the head reads, (conversations, H)."""
        batch = pack(groups, self._pad(), self._plain.device)
        if any(group.prefix for group in groups):
            hidden_BTH = self._plain.base_model(
                input_ids=batch.input_ids,
                attention_mask=attention_mask(batch.parts, self._dtype),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
        else:
            hidden_BTH = hidden_states(self._plain, batch.input_ids, (batch.parts >= 0).long())
        return hidden_BTH[batch.batch_rows, batch.lasts]

    def _own_forward(self, rows: list[list[int]]) -> Tensor:
        ids, mask = right_padded(rows, self._pad(), self._plain.device)
        logits = self._plain(input_ids=ids, attention_mask=mask).logits
        if logits.shape != (len(rows), 1):
            raise ValueError(f"The model gives numbers of shape {tuple(logits.shape)}, not one a conversation.")
        return logits[:, 0].float()

    def _pad(self) -> int:
        """Any token serves where the trunk is read, as padding is masked; transformers finds the last by its own."""
        pad = self._config.pad_token_id
        return int(pad if pad is not None else self.tokenizer.pad_token_id or 0)

    @torch.inference_mode()
    def _find_reading(self) -> Reading:
        """The fastest way to read this model that gives its own scores, found on a few made-up rows.

        What is asked: does the head read the trunk's last token; does right padding change nothing; does a row with
        several replies give each the states it has alone? Encoders read another token, ALiBi models and recurrent ones
        have no positions to give, and windows of attention would count over the other replies.
        """
        usable = [i for i in range(min(self._config.vocab_size, 64)) if i != self._config.pad_token_id][-24:]
        rows = [usable[:9], usable[:4] + usable[12:20], usable[3:7]]
        member = self.members[0]
        self._activate(member)
        own = torch.cat([self._own_forward([row]) for row in rows])
        exactly = self._dtype == torch.float32 and not getattr(self._plain, "is_quantized", False)
        if member.head is None:
            return "whole" if self._same_padded(own, rows, exactly) else "alone"
        single = [Group([i], [], [row]) for i, row in enumerate(rows)]
        alone = torch.cat([self._last_states([group]) for group in single]).float()
        # The spread a score has when states change altogether; bfloat16 rounds the model's own score to 1/256.
        scale = member.head.weight.norm() * alone.norm(dim=1) / alone.size(1) ** 0.5 + own.abs()
        if not bool(((apply_head(member.head, alone) - own).abs() <= (1e-4 if exactly else 0.02) * scale).all()):
            return "whole" if self._same_padded(own, rows, exactly) else "alone"

        def same(groups: list[Group], alone: Tensor = alone) -> bool:
            off = (self._last_states(groups).float() - alone).norm(dim=1) / alone.norm(dim=1)
            return bool((off <= (1e-4 if exactly else 0.1)).all())  # float32 rounds to 1e-6, another reading is 0.1 off

        if not same(single):
            return "alone"
        if not _attends_to_everything(self._config):
            return "rows"
        # Replies as far from their prompt's beginning as a window that the configuration does not name might end.
        prompt = (usable * (LONG // len(usable) + 1))[: max(min(LONG, self.max_length - 9), 1)]
        far = [prompt + usable[:9], prompt + usable[9:13]]
        far_alone = torch.cat([self._last_states([Group([0], [], [row])]) for row in far]).float()
        try:
            packed = same(group_rows(rows, [0, 0, 1])) and same(group_rows(far, [0, 0]), far_alone)
            return "packed" if packed else "rows"
        except (RuntimeError, ValueError, TypeError, IndexError):  # this architecture takes no mask of four dimensions
            return "rows"

    def _same_padded(self, own: Tensor, rows: list[list[int]], exactly: bool) -> bool:
        if self._config.pad_token_id is None:
            return False
        off = (self._own_forward(rows) - own).abs()
        return bool((off <= (1e-4 if exactly else 0.05) * (1 + own.abs())).all())


_RULE = "A conversation is a list of messages that ends with the assistant's, or a pair of a prompt and a reply."


def _split(number: int, conversation: Any) -> tuple[Conversation, str]:
    """Prompt and reply of a conversation, checked; else a ValueError that names it."""
    where = f"conversations[{number}]"
    try:
        if isinstance(conversation, list | tuple) and len(conversation) == 2 and isinstance(conversation[1], str):
            prompt, reply = conversation
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return check_messages(messages, "prompt"), check_text(reply, "reply")
        messages = check_messages(conversation, "it")
    except BadRow as error:
        raise ValueError(f"{where}: {error.reason}: {error.detail}. {_RULE}") from None
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(f"{where} has no prompt or does not end with a reply: {extract(conversation)}. {_RULE}")
    return messages[:-1], messages[-1]["content"]


def _limit(max_length: int | None, config: Any, tokenizer: Any) -> int:
    own = int(min(positions_of(config) or 2**20, tokenizer.model_max_length))
    if max_length is not None and not 1 <= max_length <= own:
        raise ValueError(f"max_length is {max_length}; the model takes 1 to {own} tokens.")
    return max_length or own


def _attends_to_everything(config: Any) -> bool:
    """Whether every layer looks at the whole row: with a window, or a state, other replies would stand in between."""
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return set(layers) == {"full_attention"}
    windows = [name for name in vars(config) if any(part in name for part in ("window", "chunk_size"))]
    return all(not getattr(config, name) for name in windows)
