"""The prompts that PPOTrainer is given: what it cannot train on is told before anything is loaded.

As in TRL, messages are put into the chat template, and plain text is continued as it stands.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from llm_rlhf.models.architecture import positions_of
from llm_rlhf.models.base import announce
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.rendering import RefusedByTemplateError
from llm_rlhf.ppo.config import PPOConfig

LOOKALIKES = ("query", "question", "text", "instruction", "messages", "input")  # columns that may be meant
SMALL_ROLLOUT = 32  # responses; of fewer, mean and deviation of the advantages are mostly noise


def check_datasets(train_dataset: Any, eval_dataset: Any, args: PPOConfig) -> None:
    """What is known of the prompts without a tokenizer.

    Raises:
        ValueError: naming the data set, what was found in it, and the remedy.
    """
    if train_dataset is None:
        raise ValueError("train_dataset is missing; give a datasets.Dataset with a column `prompt`.")
    for name, dataset in _named(train_dataset, eval_dataset):
        _check_kind(name, dataset)
        _check_rows(name, dataset)
    needed = args.generation_batch_size // args.num_generations
    if len(train_dataset) < needed:
        raise ValueError(
            f"There are {len(train_dataset)} prompts, but one rollout takes {needed}; lower "
            "per_device_train_batch_size or num_mini_batches, or give more prompts."
        )
    tell_small_rollout(args)


def tell_small_rollout(args: PPOConfig) -> None:
    """Say it where a rollout is too small to learn from: ahead of a run, or as a trainer is made."""
    note = small_rollout(args)
    if note and note not in _told:
        _told.add(note)
        announce(note)


_told: set[str] = set()  # notes of this process


def small_rollout(args: PPOConfig) -> str | None:
    """What to say of a rollout too small to learn from; None where it is not."""
    if args.generation_batch_size >= SMALL_ROLLOUT:
        return None
    return (
        f"a rollout is {args.generation_batch_size} responses (per_device_train_batch_size x "
        "gradient_accumulation_steps x num_mini_batches, of all processes); advantages are whitened over it, and of "
        f"fewer than {SMALL_ROLLOUT} they are mostly noise. Raise one of the three; 64 to 512 is usual."
    )


def check_lengths(train_dataset: Any, eval_dataset: Any, tokenizer: Any, model: Any, args: PPOConfig) -> None:
    """Every prompt must leave room for a response in the positions that the model has, and suit the chat template.

    Raises:
        ValueError: naming the first prompt that does not, and how many.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):  # a processor, for images too: its own lengths
        return
    if isinstance(model, (str, Path)):
        model_config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
    else:
        model_config = model.config
    positions = positions_of(model_config)
    room = (positions or 2**30) - args.response_length
    if room <= 0:
        raise ValueError(
            f"response_length is {args.response_length}, but prompt and response share the {positions} positions that "
            "the model has; lower it."
        )
    for name, dataset in _named(train_dataset, eval_dataset):
        prompts = dataset["prompt"]
        if name == "train_dataset" and isinstance(prompts[0], str):
            announce("the prompts are plain text, which is continued as it stands; messages get the chat template.")
        lengths = [_length(tokenizer, prompt, f"Row {i} of {name}") for i, prompt in enumerate(prompts)]
        too_long = [i for i, length in enumerate(lengths) if length > room]
        if too_long:
            raise ValueError(
                f"The prompt in row {too_long[0]} of {name} takes {lengths[too_long[0]]} tokens; with response_length "
                f"{args.response_length} it is beyond the {positions} positions that the model has, as are "
                f"{len(too_long)} of {len(lengths)} in all. Leave them out, cut them, or lower response_length."
            )


def _named(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Any]]:
    """Every data set with what it is called."""
    yield "train_dataset", train_dataset
    if isinstance(eval_dataset, dict):
        yield from ((f"eval_dataset[{name!r}]", dataset) for name, dataset in eval_dataset.items())
    elif eval_dataset is not None:
        yield "eval_dataset", eval_dataset


def _check_kind(name: str, dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{name} is a stream (IterableDataset), of which no row can be found again when a run is resumed; make "
            "what you need of it a Dataset: Dataset.from_list(list(stream.take(10_000)))."
        )
    if isinstance(dataset, DatasetDict):
        raise ValueError(
            f"{name} has the splits {', '.join(dataset)}; give one of them, such as ['{next(iter(dataset))}']."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is {type(dataset).__name__}; give a datasets.Dataset, such as Dataset.from_list(rows)."
        )


def _check_rows(name: str, dataset: Dataset) -> None:
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; give prompts.")
    if "prompt" not in columns:
        meant = next((column for column in LOOKALIKES if column in columns), None)
        if meant is not None:
            remedy = f"if {meant!r} is meant, {name}.rename_column({meant!r}, 'prompt')"
        elif "input_ids" in columns:
            remedy = "PPOTrainer tokenizes by itself: give the text or the messages that 'input_ids' was made of"
        else:
            remedy = "add one, of text or of messages"
        raise ValueError(f"{name} has no column 'prompt' (its columns: {', '.join(columns)}); {remedy}.")
    for i, prompt in enumerate(dataset["prompt"]):
        if fault := _fault(prompt):
            raise ValueError(f"The prompt in row {i} of {name} {fault}; give text, or messages with role and content.")


def _fault(prompt: Any) -> str | None:
    """What is wrong with a prompt; None where nothing is."""
    if prompt is None or prompt in ("", []):
        return f"is {'missing' if prompt is None else 'empty'}"
    if isinstance(prompt, str):
        return None
    if not isinstance(prompt, list):
        return f"is {type(prompt).__name__}"
    if isinstance(prompt[0], int):
        return "is a list of token ids"
    if not all(isinstance(turn, dict) and turn.get("role") and turn.get("content") is not None for turn in prompt):
        return f"holds a message without role or content ({prompt!r:.80})"
    return None


def _length(tokenizer: Any, prompt: Any, what: str) -> int:
    """Tokens of a prompt as it will be continued."""
    if isinstance(prompt, str):
        return len(tokenizer(text=prompt)["input_ids"])
    try:
        return len(encode_prompt(tokenizer, prompt))
    except RefusedByTemplateError as error:
        raise ValueError(f"{what}: the chat template refuses the prompt: {error}") from None
