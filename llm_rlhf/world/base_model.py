"""A base model of about half a million parameters: what a run with a gold world stands on.

One ships with the project (`shipped_base`), so that every run starts from the same weights; data/base/make.py made it:

1. A byte-level BPE of 1,024 tokens is learned from the conversations; it can spell any text.
2. Its chat template gives every role a token of its own and ends the assistant's turn with the EOS token, the very last
   thing of the turn, so that stopping is learned like any other token.
3. A Llama of 4 layers reads the conversations, every token of them, as base models read.

The same conversations and seed give the same weights, bit for bit, on the same machine and number of threads.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.shipped import shipped

EOS, PAD = "<|end|>", "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")

# The space before a content makes its first word the same token as in the middle of a sentence.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- ' ' + message['content'] | trim + eos_token -}}
{%- endgeneration -%}
{%- else -%}
{{- ' ' + message['content'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def make_tiny_base(
    conversations: list[Conversation],
    folder: str | Path,
    seed: int,
    *,
    vocabulary: int = 1024,
    layers: int = 4,
    width: int = 96,
    context: int = 256,
    epochs: float = 2,
    batch_size: int = 16,
    learning_rate: float = 5e-3,
    initializer_range: float = 0.05,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    """Learn a tokenizer and pretrain a small Llama on the conversations; both are saved in `folder`.

    Args:
        vocabulary: tokens of the tokenizer, its five special ones and the 256 bytes included.
        context: the most tokens the model can read.
        batch_size: conversations a step; those of a batch are of like length.
        initializer_range: standard deviation of the first weights; 0.05, as the usual 0.02 is for wider models and
            starts these slowly. How far apart it leaves the embeddings of words bounds how sure adapters can make the
            model of one of them, as they train no embedding: where a reply is to become certain, take 0.2.
        callbacks: for example one that shows progress in place of the trainer's own bar.

    Raises:
        ValueError: where a conversation is longer than `context`.
    """
    if not conversations:
        raise ValueError("There are no conversations to make a base model from.")
    folder = Path(folder)
    set_seed(seed)
    tokenizer = train_tokenizer(conversations, vocabulary, context)
    model = _new_model(tokenizer, layers, width, context, initializer_range)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        seed=seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        adam_beta2=0.99,
        logging_steps=20,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not smoothed over
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(_encode(tokenizer, conversations, context)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=callbacks,
    )
    if callbacks:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def shipped_base() -> Path:
    """The folder of the base model that ships: in the clone that this code is part of, else where the wheel put it."""
    folder = shipped("base")
    if not (folder / "model.safetensors").is_file():
        raise DataError(f"The gold world's base model is not in {folder}; install llm-rlhf from a clone or a wheel.")
    return folder


def train_tokenizer(conversations: list[Conversation], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a pad token of its own, the roles' tokens and the chat template; pads on the left."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD, *ROLE_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((" " + turn["content"] for talk in conversations for turn in talk), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(ROLE_TOKENS),
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _new_model(
    tokenizer: PreTrainedTokenizerFast, layers: int, width: int, context: int, initializer_range: float
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.bos_token_id = None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation], context: int
) -> list[dict[str, Any]]:
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
    rows = [{"input_ids": ids, "length": len(ids)} for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(row["length"] for row in rows)
    if longest > context:
        raise ValueError(f"A conversation has {longest} tokens and the tiny base model reads {context}; shorten it.")
    return rows
