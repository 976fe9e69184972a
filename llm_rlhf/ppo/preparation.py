"""What must be settled before PPOTrainer's parents are built, and what the parents settle otherwise."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType, is_peft_model
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoTokenizer
from trl.trainer.utils import RepeatSampler

from llm_rlhf.launch import uses_fsdp
from llm_rlhf.models.adapters import MERGED, POLICY, check_adapter, recompute_with_same_adapters
from llm_rlhf.models.base import tokens_beside
from llm_rlhf.models.finding import check_there
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.prompts import check_datasets
from llm_rlhf.ppo.soundness import check_peft_config
from llm_rlhf.ppo.vllm import check_adapter_can_be_sent
from llm_rlhf.ppo.vllm_adapter import check_sent
from llm_rlhf.reward.loading import check_one_label, load_classifier

MOVED = {  # arguments of trl.PPOTrainer, and where they went
    "ref_model": "leave it out: the reference is the base with its adapters off, or a copy made here without LoRA",
    "value_model": "leave it out: PPOConfig's `value` says where the value function lives",
    "reward_model": "give reward_adapter the folder of a LoRA reward model, or put the model into reward_funcs",
}


OVERALL = "overall"  # the objective of rows that do not say theirs


def objectives_of(dataset: Any, score_normalization_by: str) -> list[str]:
    """The groups of prompts whose scores have moments of their own; one where all scores go together.

    Raises:
        ValueError: where scores are to be told apart by objective and the rows do not say it.
    """
    if score_normalization_by == "all":
        return ["all"]
    if "objective" not in (dataset.column_names or []):
        raise ValueError(
            "score_normalization_by is 'objective', but the prompts have no column `objective`; add it (in a recipe, "
            "the `objective` of data.prompts), or leave score_normalization_by at 'all'."
        )
    return sorted({str(objective or OVERALL) for objective in dataset["objective"]})


class SeededSampler(RepeatSampler):
    """The parent's sampler with each pass over the prompts a function of the seed and the pass alone."""

    def __init__(self, like: RepeatSampler) -> None:
        super().__init__(
            like.data_source, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, like.seed
        )

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + 1_000_003 * epoch)


def copy_for_reference(model: Any, args: PPOConfig, kwargs: dict[str, Any]) -> Any:
    """A frozen copy of a whole model that is trained in memory; the parent could only load one by its name."""
    if isinstance(model, (str, Path)) or kwargs.get("peft_config") is not None or is_peft_model(model):
        return None
    if uses_fsdp():
        raise ValueError(
            "Without LoRA, PPO cannot run under FSDP: its reference is a second whole model. Use LoRA, or DDP."
        )
    return copy.deepcopy(model).requires_grad_(False).eval()


def given_adapter(model: Any) -> dict[str, Tensor] | None:
    """The weights of the adapter that a PEFT model came with, before a parent rounds them (TRL does on NF4)."""
    if isinstance(model, (str, Path)) or not is_peft_model(model) or POLICY not in model.peft_config:
        return None
    return {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}


@contextlib.contextmanager
def reference_of_the_parents(args: PPOConfig, reference: Any) -> Iterator[None]:
    """The parent loads a reference where its beta is not 0: only then, and always then, when there is none of ours.

    Without a penalty the KL is still logged, and `kl_limit` still ends the run.
    """
    beta = args.beta
    args.beta = 1.0 if reference is None else 0.0
    try:
        yield
    finally:
        args.beta = beta


def check_before_loading(
    args: PPOConfig,
    train_dataset: Any,
    ptx_dataset: Any,
    model: Any,
    reward_adapters: Iterable[str | Path],
    kwargs: dict[str, Any],
) -> None:
    check_datasets(train_dataset, kwargs.get("eval_dataset"), args)
    own = model.peft_config.get(POLICY) if isinstance(model, PeftModel) else None
    for config, whose in ((kwargs.get("peft_config"), "peft_config"), (own, "The given model's adapter")):
        check_peft_config(config, whose)
        if args.use_vllm:
            check_adapter_can_be_sent(config)
    check_sent(args, model, kwargs.get("peft_config") or own)
    for folder in reward_adapters:
        check_adapter(folder, "reward adapter")
    if args.ptx_coef and not ptx_dataset:
        raise ValueError(f"ptx_coef is {args.ptx_coef}, but there are no demonstrations; give a ptx_dataset.")
    if args.keep == "best" and kwargs.get("eval_dataset") is None:
        raise ValueError("keep is 'best', but there is nothing to evaluate on; give an eval_dataset.")
    if args.keep == "best" and isinstance(kwargs.get("eval_dataset"), dict):
        raise ValueError(
            f"keep is 'best', but there are {len(kwargs['eval_dataset'])} sets of prompts to evaluate on, which may "
            "disagree on what is best; give one eval_dataset, or keep: last."
        )
    if args.preview_best_of and not args.eval_on_start:
        raise ValueError(
            f"preview_best_of is {args.preview_best_of}, but it starts from an evaluation of the starting policy; set "
            "eval_rollouts, or eval_on_start."
        )
    if args.eval_strategy != "no" and kwargs.get("eval_dataset") is None:
        raise ValueError("Evaluation in training is asked for, but there is no eval_dataset.")


def load_reward_models(functions: list[Any], args: PPOConfig, train_dataset: Any, kwargs: dict[str, Any]) -> None:
    """Put models with one trained label in the place of their names among `reward_funcs`; their tokenizers likewise.

    The parent would give a model of any other kind a head of random weights, or take the first of several labels.

    Args:
        kwargs: the trainer's; `reward_processing_classes` among them is completed.

    Raises:
        ValueError: naming the model, and what it lacks.
    """
    given = kwargs.get("reward_processing_classes")
    tokenizers: list[Any] = list(given) if isinstance(given, list) else [given] * len(functions)
    if len(tokenizers) != len(functions):
        return  # the parent says so
    talks = train_dataset is not None and len(train_dataset) > 0 and not isinstance(train_dataset[0]["prompt"], str)
    arguments = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if args.distributed_state is not None and args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        arguments["device_map"] = None  # as the parent has it
    for i, function in enumerate(functions):
        if isinstance(function, str | Path):
            functions[i], own = load_classifier(function, arguments)
            tokenizers[i] = own if tokenizers[i] is None else tokenizers[i]
            if talks and tokenizers[i].chat_template is None:
                raise ValueError(
                    f"The tokenizer of the reward model {str(function)!r} has no chat template, and the prompts are "
                    "messages; give one that has in reward_processing_classes."
                )
        elif isinstance(function, nn.Module):
            name = type(function).__name__
            check_one_label(function.config, [name], f"The reward model in reward_funcs[{i}] ({name})")
    kwargs["reward_processing_classes"] = tokenizers


def check_reads_alike(tokenizer: Any, adapters: Iterable[str | Path], trust_remote_code: bool) -> None:
    """Whether reward adapters were trained on what they will read here: the policy's own tokens.

    Raises:
        ValueError: where the tokenizer saved beside one has other ids. Another template is warned of.
    """
    talk = [{"role": role, "content": text} for role, text in (("user", "Who?"), ("assistant", "I."))]
    for folder in adapters:
        place, _ = tokens_beside(Path(folder))
        if place is None:
            continue
        own = _tokenizer_at(place, tokenizer, trust_remote_code)
        here, there = tokenizer.get_vocab(), own.get_vocab()
        if other := next((token for token, i in there.items() if here.get(token, i) != i), None):
            raise ValueError(
                f"The reward adapter at {folder} was trained with another tokenizer than the policy's, whose tokens it "
                f"would read here ({other!r} is {there[other]} to one and {here[other]} to the other). {MERGED}"
            )
        if own.chat_template is None or tokenizer.chat_template is None:
            continue
        read, trained = (t.apply_chat_template(talk, tokenize=False) for t in (tokenizer, own))
        if read != trained:
            warnings.warn(
                f"The reward adapter at {folder} was trained with another chat template than the policy's, in which it "
                f"reads here ({trained!r} was {read!r}); its scores may be another model's. Give the trainer the "
                "tokenizer that is saved beside it (processing_class), or train the adapter on this template.",
                stacklevel=3,
            )


def check_models(model: Any, adapters: Mapping[str, Any], args: PPOConfig, peft_config: Any) -> None:
    """Whether the base and the reward adapters are there, and can be put together.

    Args:
        adapters: folders by name, the held-out one's with them.

    Raises:
        ValueError: naming what is not there, or what is missing.
    """
    named = isinstance(model, (str, Path))
    has_adapter = peft_config is not None or (not named and is_peft_model(model))
    if (adapters or args.value == "adapter") and not has_adapter:
        raise ValueError("A reward or value adapter needs a policy adapter on the same base; give a peft_config.")
    if named:
        check_there(model, "The model")
    for name, folder in adapters.items():
        check_there(folder, f"The {name} adapter")
        if Path(folder).is_dir() and not (Path(folder) / "adapter_config.json").is_file():
            raise ValueError(
                f"The {name} adapter {str(folder)!r} holds no adapter_config.json; name the folder that a LoRA reward "
                "model was saved in, such as RUN/reward/joint."
            )


def check_distribution(kind: DistributedType, args: PPOConfig) -> None:
    """ValueError where a way of spreading over devices cannot do what is asked right."""
    if kind == DistributedType.DEEPSPEED:
        raise ValueError(
            "PPO cannot run under DeepSpeed: its engine rounds the heads to its compute type, and takes the optimizer "
            "step within the backward pass, before ratio_limit and update_kl_limit could skip it; use DDP or FSDP2."
        )
    if kind != DistributedType.FSDP:
        return
    if args.micro_batch_tokens is not None:
        raise ValueError(
            "micro_batch_tokens gives processes different numbers of forwards, but FSDP gathers the weights "
            "in every one and would wait for ever; cut by per_device_train_batch_size instead."
        )
    for key, value in (("decoding", "compiled"), ("merge_for_sampling", True)):
        if getattr(args, key) == value:
            raise ValueError(
                f"{key} is {value!r}, but under FSDP each process holds a part of the weights; leave it at its default."
            )
    for key, value in (("keep", "best"), ("side_guard", "stop")):
        if getattr(args, key) == value:
            raise ValueError(
                f"{key} is {value!r}, which goes back to a snapshot, and FSDP cannot read one into weights "
                f"that are spread over processes; leave {key} at its default and choose by `snapshots.jsonl`, or use "
                "DDP."
            )


def checkpoint_with_adapters(args: PPOConfig) -> None:
    """Recompute checkpointed activations under the adapters of their forward (only possible without reentrance)."""
    kwargs = dict(args.gradient_checkpointing_kwargs or {})
    if kwargs.get("use_reentrant"):
        raise ValueError(
            "value: adapter with reentrant gradient checkpointing would recompute the value's activations with the "
            "policy's adapter; use value: shared, or gradient_checkpointing_kwargs: {use_reentrant: false}."
        )
    kwargs |= {"use_reentrant": False, "context_fn": recompute_with_same_adapters}
    args.gradient_checkpointing_kwargs = kwargs
    if hasattr(args, "activation_checkpointing_kwargs"):  # transformers' newer name for the same
        args.activation_checkpointing_kwargs = kwargs


def _tokenizer_at(place: Path, like: Any, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder; one with code of its own by the class of the policy's, which is trusted already."""
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except ValueError:
        if not (trust_remote_code and type(like).__module__.startswith("transformers_modules")):
            raise
    return type(like).from_pretrained(place)
