"""Loading what a run stands on: the causal language model, its quantisation, its tokenizer and chat template."""

import contextlib
import datetime
import io
import itertools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from llm_rlhf.errors import RecipeError
from llm_rlhf.launch import processes
from llm_rlhf.models import template_settings
from llm_rlhf.models.architecture import embedding_rows, positions_of, unlike_linear
from llm_rlhf.models.finding import check_upstream, loading_raises, needs_code, reason_of
from llm_rlhf.models.lora_sums import sum_in_products
from llm_rlhf.models.products import multiply_faster
from llm_rlhf.models.rendering import special_tokens_in
from llm_rlhf.models.whole import compute_in_own_type, whole_config
from llm_rlhf.progress import tell
from llm_rlhf.recipe.sections import ModelSection

# For base models whose tokenizer knows no chat: plain words that every vocabulary can spell, so that no token is new
# and untrained. The reply ends with the EOS token and nothing after it.
PLAIN_CHAT_TEMPLATE = (Path(__file__).parent / "plain_chat.jinja").read_text(encoding="utf-8")

# Tokens that vocabularies reserve and never use for text: a pad token can take one without new embeddings.
_RESERVED_PADS = (
    "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|PAD_TOKEN|>",
    "<|reserved_special_token_0|>", "<unused0>", "<|extra_0|>",
)  # fmt: skip


def load_tokenizer(path: str | Path, section: ModelSection, beside: Path | None = None) -> Any:
    """The tokenizer, with a chat template, an EOS that ends the assistant's turn, and a pad token of its own.

    Args:
        beside: the folder of an adapter on the model; what is saved there of tokenizer or template is the adapter's.

    What the recipe sets in the template is written into it. What a base tokenizer lacks is added and said aloud. A pad
    token is taken from the vocabulary's reserved tokens, or else added as a new one (then `load_causal_lm` makes room
    for it where the embeddings have none).

    Raises:
        RecipeError: where it cannot be loaded, has no EOS token, or its template does not take what the recipe sets.
    """
    tokenizer = _read_tokenizer(path, section, beside)
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"The tokenizer of {path} has no EOS token; a chat model must be able to stop. Set one in it."
        )
    _give_template(tokenizer, beside or path)
    _settle_template(tokenizer, beside or path, section)
    _end_turns_with_eos(tokenizer, beside or path)
    _give_pad_token(tokenizer, beside or path, stops_of_files(path, section.trusts_base))
    return tokenizer


def same_tokens(path: str | Path, section: ModelSection, one: Path | None, other: Path | None) -> bool:
    """Whether two adapters' folders (None: no adapter) leave the model at `path` the same vocabulary and template.

    As they are used: a run's policy comes with its tokenizer as the run completed it, its base with it as it was found.
    """
    if tokens_beside(one) == tokens_beside(other):
        return True
    with contextlib.redirect_stdout(io.StringIO()):  # what is added is said where the model is loaded
        read = [load_tokenizer(path, section, beside) for beside in (one, other)]
    mine, others = ((t.get_vocab(), t.chat_template, t.eos_token) for t in read)
    return mine == others


def base_tokens(path: str | Path, section: ModelSection) -> Any:
    """The tokenizer of a base as it is, with the template that the recipe names, where it names one.

    Raises:
        RecipeError: where it cannot be loaded.
    """
    return _read_tokenizer(path, section, None)


def lasting_template(path: str | Path, section: ModelSection) -> str | None:
    """The template of a base that asks for the day, with the recipe's arguments and without the run's day.

    None where it asks for none, or cannot be read any more.
    """
    try:
        template = template_settings.with_arguments(
            base_tokens(path, section).get_chat_template(), section.chat_template_kwargs
        )
    except ValueError:  # a RecipeError is one
        return None
    return template if template_settings.asks_the_clock(template) else None


def _read_tokenizer(path: str | Path, section: ModelSection, beside: Path | None) -> Any:
    """As it was saved, with the template that the recipe names, where it names one."""
    place, template = tokens_beside(beside)
    trusted = section.trusts_base if place is None else section.trusts(place)
    if trusted:
        check_upstream(place or path, section.trusted, "The tokenizer of")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place or path,
            trust_remote_code=trusted,
            padding_side="left",
        )
    except loading_raises(section.trusts_base) as error:
        raise RecipeError(_cannot_load("tokenizer", place or path, error)) from None
    named = section.chat_template or template
    if named is not None:
        tokenizer.chat_template = Path(named).read_text(encoding="utf-8")
    return tokenizer


def tokens_beside(adapter: Path | None) -> tuple[Path | None, Path | None]:
    """What is saved with an adapter, and is its own: the folder of a tokenizer, or the file of a template alone."""
    if adapter is None:
        return None, None
    if any((adapter / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return adapter, None
    template = adapter / "chat_template.jinja"
    return None, template if template.is_file() else None


def complete_tokenizer(tokenizer: Any, path: str | Path, stops: Collection[int] = ()) -> None:
    """Give a base tokenizer what it lacks, said aloud: a chat template, and a pad token that ends no reply.

    Args:
        stops: tokens that end replies of the model, beside the tokenizer's EOS.
    """
    _give_template(tokenizer, path)
    _give_pad_token(tokenizer, path, stops)


def stops_of_files(path: str | Path, trusted: bool = False) -> list[int]:
    """Tokens that end a reply by a model's own files, as a model that is loaded from them has it; none without files.

    Args:
        trusted: whether code that comes with the model may run.
    """
    try:
        named = GenerationConfig.from_pretrained(path)
    except OSError:
        try:
            named = GenerationConfig.from_model_config(AutoConfig.from_pretrained(path, trust_remote_code=trusted))
        except loading_raises(trusted):
            return []
    return _ids(named.eos_token_id)


def load_causal_lm(path: str | Path, section: ModelSection, tokenizer: Any, quantized: bool = True) -> Any:
    """The causal language model in the recipe's compute type, quantised where the recipe says so.

    Args:
        quantized: False loads full weights whatever the recipe says (to merge an adapter into them).
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **loading_arguments(section, quantized))
    except loading_raises(section.trusts_base) as error:
        raise RecipeError(_cannot_load("model", path, error)) from None
    keep_unpacked(model)
    make_room_for(tokenizer, model)
    multiply_faster(model)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = stop_token_ids(tokenizer, model)
    return model


def loading_arguments(section: ModelSection, quantized: bool = True) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for this model section."""
    arguments: dict[str, Any] = {
        "dtype": getattr(torch, section.dtype),
        "trust_remote_code": section.trusts_base,
    }
    if quantized and section.quantization != "none":
        arguments["quantization_config"] = quantization_config(section)
        # Quantised weights cannot be moved afterwards, so every process loads them onto its own device.
        arguments["device_map"] = {"": processes().device}
    return arguments


def keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    There the first forward without gradients (sampling is one) repacks them for good, and every gradient after it is
    silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapters_in_float32(model: Any) -> None:
    """What is trained, in float32, where steps of 1e-5 do not round to nothing; TRL casts it to bfloat16 on NF4.

    Under bfloat16 autocast the products are computed in bfloat16 all the same, and a copy of a whole module
    (`modules_to_save`) computes as the module that it stands for. LoRA's update is added as it is multiplied.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    leave_casts_to_autocast(model)
    sum_in_products(model)
    compute_in_own_type(model)


class _OutsideAutocast:
    """True outside autocast, of the CPU or of the accelerator: what PEFT's `cast_input_dtype_enabled` is set to."""

    def __init__(self) -> None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]

    def __bool__(self) -> bool:
        return not any(torch.is_autocast_enabled(kind) for kind in self.kinds)


def leave_casts_to_autocast(model: Any) -> None:
    """Under autocast, let no adapter copy its layer's input into float32, of which autocast makes bfloat16 again.

    PEFT casts inputs to the type of the adapter's weights, which is needed outside autocast alone. Under it these are
    two copies of all activations a linear layer, and two more backwards, that change no bit of the result
    (tests/parity/test_casts.py).
    """
    outside = _OutsideAutocast()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = outside


def quantization_config(section: ModelSection) -> BitsAndBytesConfig:
    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
    )


def adapter_config(section: ModelSection, task_type: str, model: Any, **options: Any) -> LoraConfig:
    """The adapter of every role on this model: LoRA, or without it a copy of all weights (models/whole.py).

    No dropout: it would make the ratios of PPO noise.

    `all-linear` leaves out what PEFT would take for a linear map and is none (PhiMoE's router).

    `all-linear` in mixtures of experts, whose experts transformers 5 holds as fused 3-D parameters:

    - Mixtral, Qwen3-MoE, OLMoE, DeepSeek and others that transformers builds on these (its conversion mapping): PEFT
      adapts attention, router and every routed expert; the expert's gate and up projections are one parameter, of twice
      the rank and alpha. Each forward adds the update to a layer's experts as a whole, so it needs room for a copy of
      them. Shared experts and dense MLP layers are left out.
    - The others (GPT-OSS, Qwen2-MoE, GraniteMoE): PEFT adapts what is a linear layer; routed experts and router stay
      as they are.

    bitsandbytes quantises linear layers only, so fused experts, most of the weights, stay in the compute type. Neither
    PPO nor reward modelling adds the router's load-balancing loss; SFT does, with the model's own coefficient (TRL's
    default).
    """
    lora = section.lora
    if isinstance(lora, str):  # none
        return whole_config(task_type, model, **options)
    excluded = unlike_linear(model) if lora.target_modules == "all-linear" else []
    return LoraConfig(
        task_type=task_type,
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        exclude_modules=excluded or None,
        lora_dropout=0.0,
        **options,
    )


def make_room_for(tokenizer: Any, model: Any) -> None:
    """Grow the embeddings where the tokenizer has more tokens than they have rows.

    New rows are the mean of the others, of input and of output alike: the same in every stage, whose adapters are saved
    with them and loaded beside each other, and as likely to be said as an average token (a zero row's is the likeliest
    of all where logits are below zero, as GPT-2's are).

    Raises:
        ValueError: where an adapter has wrapped them, which growing would take away from it.
    """
    if len(tokenizer) > embedding_rows(model):
        if any(isinstance(module, AuxiliaryTrainingWrapper) for module in
               (model.get_input_embeddings(), model.get_output_embeddings())):  # fmt: skip
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens and the model {embedding_rows(model)} rows of embeddings, "
                "which the adapter already holds copies of; grow the model's before the adapter is made "
                "(resize_token_embeddings), or give the tokenizer a pad token that the vocabulary has."
            )
        before = embedding_rows(model)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for grown in layer.parameters(recurse=False) if layer is not None else ():
                grown.data[before:] = grown.data[:before].mean(0, dtype=torch.float64).to(grown.dtype)


def stop_token_ids(tokenizer: Any, model: Any) -> list[int]:
    """Every token that ends a reply: the tokenizer's EOS first, then what the model's generation config names."""
    return list(dict.fromkeys([tokenizer.eos_token_id, *_ids(model.generation_config.eos_token_id)]))


def _ids(named: int | list[int] | None) -> list[int]:
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def context_limit(section: ModelSection, model_config: Any) -> int:
    """Tokens that prompt and reply may take together."""
    own = positions_of(model_config) or 2**20
    if section.context_length is None:
        return own
    if section.context_length > own:
        raise RecipeError(f"Recipe key 'model.context_length' is {section.context_length}; the model takes {own}.")
    return section.context_length


def announce(message: str) -> None:
    """Say something once, on the main process."""
    if processes().is_main_process:
        tell(f"  note: {message}")


def _settle_template(tokenizer: Any, path: str | Path, section: ModelSection) -> None:
    """Write the recipe's arguments and its day into the template: see template_settings.py."""
    try:
        template, arguments = str(tokenizer.get_chat_template()), section.chat_template_kwargs
    except ValueError as error:  # several templates, of which none is the default
        raise RecipeError(f"The tokenizer of {path}: {error} Recipe key 'model.chat_template' takes a file.") from None
    if strange := template_settings.unused(template, arguments):
        raise RecipeError(
            f"Recipe key 'model.chat_template_kwargs.{strange[0]}' is set to {arguments[strange[0]]!r}, but the chat "
            f"template of {path} does not read {strange[0]!r}; remove the key, or spell it as the template does."
        )
    try:
        template = template_settings.with_arguments(template, arguments)
    except ValueError as error:
        raise RecipeError(f"Recipe key 'model.chat_template_kwargs': {error}") from None
    if template_settings.asks_the_clock(template):
        day = section.chat_template_date or datetime.date.today()
        template = template_settings.at_day(template, day)
        late = ", but for a call that asks the clock in a way of its own" * template_settings.asks_the_clock(template)
        announce(f"The chat template of {path} prints today's date; it is {day} throughout{late}.")
    tokenizer.chat_template = template


def _end_turns_with_eos(tokenizer: Any, path: str | Path) -> None:
    """Make the token that ends the template's assistant turn the tokenizer's EOS: stopping is what is trained.

    It is the first special token after the reply: a template may print more than one (Phi-3: `<|end|>`, a new line,
    `<|endoftext|>`), but a policy stops at the first.
    """
    reply = "The reply itself."
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": reply}]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise RecipeError(f"The chat template of {path} cannot render a user and an assistant turn: {error}") from None
    start = text.casefold().rfind(reply.casefold())  # a template may write in capitals
    if start < 0:
        raise RecipeError(
            f"The chat template of {path} leaves out what a turn says where it is text (it may want a list of parts, "
            "as models that see images do); give model.chat_template one that writes text."
        )
    found = special_tokens_in(tokenizer, text[start + len(reply) :])
    if not found:
        raise RecipeError(
            f"The chat template of {path} ends the assistant's turn without a special token, so that a model could "
            "never learn to stop. Give model.chat_template a template whose assistant turn ends with one."
        )
    if found[0] != tokenizer.eos_token:
        announce(
            f"The chat template ends turns with {found[0]!r}; it becomes the EOS token (was {tokenizer.eos_token!r})."
        )
        tokenizer.eos_token = found[0]


def _give_template(tokenizer: Any, path: str | Path) -> None:
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        announce(f"The tokenizer of {path} has no chat template; it gets the plain 'Human: / Assistant:' one.")


def _give_pad_token(tokenizer: Any, path: str | Path, stops: Collection[int]) -> None:
    """Where it pads with what ends a reply, stopping could not be told from padding."""
    ends = {tokenizer.eos_token_id, *stops}
    if tokenizer.pad_token_id is None:
        why = "is missing"
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        why = "is the same as its EOS"
    elif tokenizer.pad_token_id in ends:
        why = f"({tokenizer.pad_token!r}) also ends replies by the model's own files"
    else:
        return
    vocabulary = tokenizer.get_vocab()
    free = next((t for t in _RESERVED_PADS if t in vocabulary and vocabulary[t] not in ends), None)
    if free is not None:
        tokenizer.pad_token = free
        announce(f"The pad token of {path} {why}; the reserved token {free!r} pads.")
        return
    names = itertools.chain(["<|pad|>"], (f"<|pad_{number}|>" for number in itertools.count()))
    added = next(name for name in names if name not in vocabulary)
    tokenizer.add_special_tokens({"pad_token": added})
    announce(f"The pad token of {path} {why}; {added!r} is added as token {tokenizer.pad_token_id}.")


def _cannot_load(what: str, path: str | Path, error: Exception) -> str:
    if of_code := needs_code(path, error):
        return f"The {what} of {of_code}"
    reason = reason_of(error)
    offline = " HF_HUB_OFFLINE is set, so the hub was not asked." if os.environ.get("HF_HUB_OFFLINE") else ""
    return f"Recipe key 'model.base': the {what} of {str(path)!r} cannot be loaded: {reason}.{offline}"
