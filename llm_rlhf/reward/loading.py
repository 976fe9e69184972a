"""Loading trained reward models: adapters with a head on their base, or whole sequence-classification models.

A folder of a run's reward stage holds the adapter and its head, the tokenizer with its chat template, and what is known
about its scores: `normalisation.json` (see roles.py) and `calibration.json`, whose `temperature` makes the difference
of two scores, as trained, the logarithm of the odds that people prefer the first reply, where it is not null.
"""

import copy
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModelForSequenceClassification
from peft.utils import load_peft_weights
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import find_adapter_config_file, logging

from llm_rlhf.errors import first_line
from llm_rlhf.launch import processes
from llm_rlhf.models.adapter_folders import base_of, places_of_base
from llm_rlhf.models.adapters import check_saved, grow_for, load_beside
from llm_rlhf.models.base import keep_unpacked, make_room_for, quantization_config, tokens_beside
from llm_rlhf.models.finding import check_there, check_upstream, needs_code
from llm_rlhf.models.products import is_linear, multiply_faster
from llm_rlhf.models.roles import NORMALISATION, load_scalar_head, read_normalisation
from llm_rlhf.recipe.sections import ModelSection, is_among
from llm_rlhf.run_folder import write_json

CALIBRATION = "calibration.json"
HEADS = tuple(SEQ_CLS_HEAD_NAMES)  # what transformers calls the head


class Member(NamedTuple):
    """One reward model of an ensemble."""

    adapter: str | None  # PEFT's name of it; None: a model without adapters
    head: nn.Linear | None  # float32; None: the model's own forward is the only way to read it
    mean: float  # of reference samples, taken off its scores
    deviation: float  # and what they are divided by then
    temperature: float | None  # of its scores before that; None: held-out pairs told none


class Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    members: list[Member]
    ends_with_reply: bool  # with the reply's stop token, as in this package's stages; else as the template ends


@dataclass(frozen=True)
class Loading:
    """How weights are loaded: `RewardModel.from_pretrained` says what each field means."""

    dtype: str | torch.dtype = "float32"
    quantization: str = "none"
    device: str | torch.device | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool | tuple[str, ...] = False  # of any model, or of those that are named
    chat_template: str | Path | None = None

    def trusts(self, model: str | Path) -> bool:
        """Whether Python that the model's repository ships may run."""
        return (
            self.trust_remote_code
            if isinstance(self.trust_remote_code, bool)
            else is_among(model, self.trust_remote_code)
        )

    def arguments(self, model: str | Path) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` for this model."""
        dtype = str(self.dtype).removeprefix("torch.")
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype is {self.dtype!r}; give float32, bfloat16 or float16.")
        if self.trusts(model) and not isinstance(self.trust_remote_code, bool):
            check_upstream(model, self.trust_remote_code, "The reward model")
        known: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": self.trusts(model)}
        if self.attn_implementation is not None:
            known["attn_implementation"] = self.attn_implementation
        if self.quantization in ("nf4", "int8"):
            section = ModelSection(dtype=dtype, quantization=self.quantization)  # type: ignore[arg-type]
            known |= {"quantization_config": quantization_config(section), "device_map": {"": self.place()}}
        elif self.quantization != "none":
            raise ValueError(f"quantization is {self.quantization!r}; known: none, nf4, int8.")
        return known

    def place(self) -> torch.device:
        device = processes().device if self.device is None else torch.device(self.device)
        return torch.device("cpu") if device.type == "cpu" else device  # safetensors refuses "cpu:0", as launches say


def local_adapter(path: str | Path, revision: str | None) -> Path | None:
    """The folder of a PEFT adapter, fetched where `path` is a hub id; None where it is a whole model."""
    if Path(path).is_dir():
        if (Path(path) / "adapter_config.json").is_file():
            return Path(path)
        if not (Path(path) / "config.json").is_file():
            inside = sorted(str(found.parent) for found in Path(path).glob("**/reward/*/adapter_config.json"))
            hint = f" These hold one: {', '.join(inside)}." if inside else ""
            raise ValueError(f"{path} holds neither adapter_config.json nor config.json: it is no reward model.{hint}")
        return None
    check_there(path, "The reward model")  # asks the hub once, where the next line would ask again and again
    try:
        found = find_adapter_config_file(str(path), revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_load("reward model", path, error)) from None
    if found is None:
        return None
    return Path(snapshot_download(str(path), revision=revision, ignore_patterns=["checkpoint-*", "*.pt", "*.pth"]))


def load_adapters(folders: Sequence[Path], base: str | Path | None, normalised: bool, loading: Loading) -> Loaded:
    """One base with one or several reward adapters, ready to be read.

    Raises:
        ValueError: where the base cannot be found, the adapters do not belong to it or to each other, or one has no
            head.
    """
    base = _common_base(folders) if base is None else base
    tokenizer = _tokenizer(folders, base, loading)
    arguments = loading.arguments(base)
    try:
        model = _load_headless(base, arguments)
    except (OSError, ValueError) as error:
        looked = ", ".join(map(str, places_of_base(folders[0])))
        raise ValueError(
            f"{_cannot_load('base', base, error)}. Folders looked for: {looked}. Say where it is with base=..."
        ) from None
    keep_unpacked(model)
    make_room_for(tokenizer, model)
    for folder in folders:
        grow_for(model, folder)
    if tokenizer.pad_token_id is not None:  # as TRL's RewardTrainer has it: a score is read before trailing pads
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if "quantization_config" not in arguments:
        model = model.to(loading.place())
    plain_head = own_head(model)
    peft_model: Any = None
    members = []
    for number, folder in enumerate(folders):
        name = f"member{number}"
        head = None
        if plain_head is not None and plain_head.bias is None:
            head = load_scalar_head(folder, plain_head.in_features, normalised=False).to(loading.place())
        elif not any(f".{head_name}." in key for key in load_peft_weights(str(folder), "cpu") for head_name in HEADS):
            raise ValueError(f"The reward adapter at {folder} holds no score head ({' or '.join(HEADS)}).")
        if peft_model is None:
            check_saved(model, folder, "reward adapter", alone=len(folders) == 1)  # before PEFT makes room for it
            peft_model = PeftModelForSequenceClassification(model, _inference_config(folder), adapter_name=name)
        loaded = load_beside(peft_model, folder, name, "reward adapter", alone=len(folders) == 1)
        astray = [k for k in loaded if not any(f".{n}." in f".{k}" for n in HEADS)]
        if astray:
            raise ValueError(
                f"The reward adapter at {folder} was trained on another base than {base}: {len(astray)} weights do "
                f"not fit, {astray[0]} the first. Say where its base is with base=..."
            )
        mean, deviation = read_normalisation(folder) if normalised else (0.0, 1.0)
        members.append(Member(name, head, mean, deviation, read_temperature(folder)))
    ours = any((folder / name).is_file() for folder in folders for name in (NORMALISATION, CALIBRATION))
    multiply_faster(peft_model)
    return Loaded(peft_model.eval().requires_grad_(False), tokenizer, members, ours)


def load_whole(path: str | Path, revision: str | None, loading: Loading) -> Loaded:
    """A sequence-classification model with one label.

    Raises:
        ValueError: where it has another number of labels, or no trained head.
    """
    arguments = loading.arguments(path) | {"revision": revision}
    model, tokenizer = load_classifier(path, arguments)
    _set_chat_template(tokenizer, loading.chat_template, path)
    keep_unpacked(model)
    if "quantization_config" not in arguments:
        model = model.to(loading.place())
    multiply_faster(model)
    model = model.eval().requires_grad_(False)
    return Loaded(model, tokenizer, [Member(None, own_head(model), 0.0, 1.0, 1.0)], False)


def load_classifier(path: str | Path, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """A sequence-classification model with one trained label, and its tokenizer; an adapter is merged into its base.

    Args:
        arguments: of the model's `from_pretrained`.

    Raises:
        ValueError: where it is no such model.
    """
    where = {name: arguments[name] for name in ("revision", "trust_remote_code") if name in arguments}
    folder = local_adapter(path, where.get("revision"))
    if folder is not None:
        how = {
            name: arguments[name] for name in ("dtype", "trust_remote_code") if arguments.get(name, "auto") != "auto"
        }
        loaded = load_adapters([folder], None, False, Loading(**how))
        loaded.model.set_adapter(loaded.members[0].adapter, inference_mode=True)
        return loaded.model.merge_and_unload(), loaded.tokenizer
    try:
        config = AutoConfig.from_pretrained(path, **where)
        check_one_label(config, config.architectures or (), "It")
        model, report = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **arguments)
        if report["missing_keys"]:
            raise ValueError(f"Its files lack {', '.join(sorted(report['missing_keys']))}: it has no trained head.")
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_load("reward model", path, error)) from None
    return model, tokenizer


def check_one_label(config: Any, classes: Sequence[str], what: str) -> None:
    """Raise ValueError where it is no reward model with one label.

    Args:
        classes: what the model is an instance of, or says that it is.
        what: begins the error.
    """
    if config.num_labels != 1:
        raise ValueError(
            f"{what} has {config.num_labels} labels"
            + (", and is a language model" if any("CausalLM" in name for name in classes) else "")
            + "; a reward model has one: AutoModelForSequenceClassification trained with num_labels=1."
        )


def _load_headless(base: str | Path, arguments: dict[str, Any]) -> Any:
    """A base with a random head, whose place the adapters' heads take; nothing is said about the random one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, output_loading_info=True, **arguments
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in report["missing_keys"] if key.split(".")[0] not in HEADS)
    if missing:
        raise ValueError(f"Its files lack {len(missing)} weights, {missing[0]} the first.")
    return model


def own_head(model: Any) -> nn.Linear | None:
    """A float32 copy of a sequence-classification model's head, where it is one linear map to one number."""
    parts = [
        (n, part) for n, part in model.named_children() if part is not model.base_model and list(part.parameters())
    ]
    if len(parts) != 1 or parts[0][0] not in HEADS or not is_linear(parts[0][1]):
        return None
    head = parts[0][1]
    return copy.deepcopy(head).float() if head.out_features == 1 else None


def write_calibration(adapter: str | Path, calibration: dict[str, Any]) -> None:
    """Store beside an adapter what `evaluation.calibration.calibrate` found on its scores before normalisation."""
    write_json(Path(adapter) / CALIBRATION, calibration)


def read_temperature(adapter: str | Path) -> float | None:
    """The temperature stored with an adapter; 1, what reward models are trained with, where nothing is stored.

    None where calibration was tried and no temperature was the best (`no_temperature` in the file says why).
    """
    path = Path(adapter) / CALIBRATION
    if not path.is_file():
        return 1.0
    known = json.loads(path.read_text(encoding="utf-8"))
    temperature = known.get("temperature")
    if temperature is None and known.get("no_temperature"):
        return None
    if not isinstance(temperature, float | int) or not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{path}: 'temperature' is {temperature!r}; it must be a positive number.")
    return float(temperature)


def _inference_config(folder: Path) -> PeftConfig:
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


def _common_base(folders: Sequence[Path]) -> str | Path:
    try:
        bases = {str(folder): base_of(folder) for folder in folders}
    except ValueError as error:
        raise ValueError(f"{error} Say where it is with base=...") from None
    if len({os.path.realpath(base) for base in bases.values()}) > 1:
        raise ValueError(
            f"The adapters stand on different bases ({', '.join(f'{f}: {b}' for f, b in bases.items())}); an ensemble "
            "shares one. If they are the same model, say where it is with base=..."
        )
    return next(iter(bases.values()))


def _tokenizer(folders: Sequence[Path], base: str | Path, loading: Loading) -> Any:
    """The tokenizer saved with the adapters, else the base's; refused where the adapters have different templates."""
    found = []
    for folder in folders:
        saved, template = tokens_beside(folder)
        place = saved or base
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=loading.trusts(place))
        except (OSError, ValueError) as error:
            raise ValueError(_cannot_load("tokenizer", place, error)) from None
        _set_chat_template(tokenizer, loading.chat_template or template, place)
        found.append(tokenizer)
    for folder, tokenizer in zip(folders, found, strict=True):
        if (tokenizer.chat_template, len(tokenizer)) != (found[0].chat_template, len(found[0])):
            raise ValueError(
                f"The adapters at {folders[0]} and {folder} have different tokenizers or chat templates; an ensemble "
                "reads the same tokens."
            )
    return found[0]


def _set_chat_template(tokenizer: Any, chat_template: str | Path | None, place: str | Path) -> None:
    if chat_template is not None:
        is_file = isinstance(chat_template, Path) or str(chat_template).endswith(".jinja")
        tokenizer.chat_template = Path(chat_template).read_text("utf-8") if is_file else str(chat_template)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer of {place} has no chat template, so that nobody knows how it was trained to read a "
            "conversation. Give one: chat_template=, a .jinja file or its text."
        )


def _cannot_load(what: str, path: str | Path, error: Exception) -> str:
    if of_code := needs_code(path, error):
        return f"The {what} {of_code}"
    nowhere = "" if Path(path).is_dir() else "There is no such folder here; as a hub id: "
    return f"The {what} {str(path)!r} cannot be loaded: {nowhere}{first_line(error)}"
