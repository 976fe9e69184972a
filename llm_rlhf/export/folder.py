"""Writes the export: whole or not at all, and only where nothing else lies.

1. What is exported is found, and whether it can be one adapter on a base of the hub, or must be whole weights.
2. Weights, tokenizer and generation config are written into a folder beside the wanted one.
3. Both, the policy as trained and what was written, read replies of the run's evaluation: how far are they apart?
4. The model card says what is known, and the folder gets its name.
5. Where that is asked for, it goes to the hub.
"""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors.torch import save_file

from llm_rlhf.errors import RecipeError
from llm_rlhf.export import pushing
from llm_rlhf.export.card import model_card
from llm_rlhf.export.fidelity import Difference, as_exported, as_trained, difference, rows_of
from llm_rlhf.export.source import Source, source_of, why_no_adapter
from llm_rlhf.launch import processes
from llm_rlhf.models.adapters import check_saved, grow_for, onto_device_of
from llm_rlhf.models.base import base_tokens, load_causal_lm
from llm_rlhf.models.composing import compose
from llm_rlhf.provenance import versions
from llm_rlhf.recipe.sections import METHODS
from llm_rlhf.run_folder import digests, open_to_readers, read_json, writable, write_json

MARK = "export.json"  # tells an export of ours, and of what it was made


@dataclass
class Exported:
    folder: Path
    kind: str  # "adapter" or "model"
    notes: list[str]  # what a user must know of how it was made
    difference: Difference | None = None  # from the policy as it was trained; None where no replies are kept
    url: str | None = None  # on the hub
    private: bool | None = None  # whether it is so there


def export(
    text: str,
    merge: bool = False,
    to: str | None = None,
    push: str | None = None,
    despite_gate: bool = False,
    say: Callable[[str], None] = print,
    trust_remote_code: Sequence[str] = (),
) -> Exported:
    """Make a folder that transformers, PEFT and servers load.

    Args:
        text: a run, RUN:STAGE, an adapter or a model, as `llm-rlhf evaluate` takes it.
        merge: whole weights also where an adapter would do.
        to: the folder; None: exports/NAME.
        push: an id on the hub (OWNER/NAME), where the folder is uploaded to.
        despite_gate: pushed also where the policy does not pass the gate of its run.
        trust_remote_code: models whose repositories' Python may run here.

    Raises:
        RecipeError, RunFolderError, RunError: where it cannot be done as asked; nothing has been written then.
    """
    source = source_of(text, trust_remote_code)
    folder = Path(to) if to is not None else Path("exports") / source.name
    check_target(folder)
    if push is not None:
        pushing.check(source, push, despite_gate)
    why = None if merge else _why_whole(source)
    notes = [] if why is None else [f"Whole weights are written: {why}."]
    made = make(source, "model" if merge or why else "adapter", folder, push or folder.name, notes, say)
    if push is not None:
        made.url, made.private = pushing.push(folder, push)
    return made


def make(
    source: Source,
    kind: Literal["adapter", "model"],
    folder: Path,
    name: str,
    notes: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Exported:
    """Write the folder, which appears whole or not at all.

    Args:
        name: how the card's code loads it.
        notes: what the card says of why it is as it is.
    """
    made = Exported(folder, kind, list(notes))
    if source.unfinished is not None:
        made.notes.append(f"{METHODS[source.unfinished]} is not finished; this is the SFT model that it begins from.")
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    writable(partial)
    try:
        made.notes += _write(source, kind, partial)
        for note in made.notes:
            say(note)
        if rows := rows_of(source):
            say(f"comparing what was written with the policy as it was trained, on {len(rows)} replies")
            trained = as_trained(source, rows)
            exported = as_exported(partial, source.section.trusts_base, rows)
            made.difference = difference(trained, exported, len(rows))
        card = model_card(source, kind, name, made.notes, made.difference)
        (partial / "README.md").write_text(card, encoding="utf-8")
        mark = {"made_of": text_of(source), "kind": kind, "weights": weights_of(source), "versions": versions()}
        write_json(partial / MARK, mark | {"files": digests(partial)})
        open_to_readers(partial)
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def check_target(folder: Path) -> None:
    """RecipeError where the folder holds what is no export of ours; RunFolderError where it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--to {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
        raise RecipeError(f"--to {folder} is not empty, and not an earlier export; name another folder, or empty it.")
    writable(folder.parent)


def is_export(folder: Path) -> bool:
    return isinstance(read_json(folder / MARK), dict)


def made_from(folder: Path, source: Source) -> bool:
    """Whether the folder is an export of just this policy."""
    known = read_json(folder / MARK)
    return isinstance(known, dict) and known["weights"] == weights_of(source)


def text_of(source: Source) -> str:
    """The policy's name without the place it lies at."""
    return f"{source.name} ({source.stage})" if source.stage else source.name


def weights_of(source: Source) -> dict[str, str]:
    """SHA-256 of the files of weights that the policy is made of here."""
    folders = [*source.adapters, *([Path(source.subject.base)] if Path(source.subject.base).is_dir() else [])]
    return {
        f"{number}/{name}": str(entry["sha256"])
        for number, folder in enumerate(folders)
        for name, entry in digests(folder).items()
        if name.endswith((".safetensors", ".bin"))
    }


def _why_whole(source: Source) -> str | None:
    """Why no adapter is written though one was asked for, in words.

    Raises:
        RecipeError: where only the user can say that they want whole weights.
    """
    if not source.adapters:
        return "the policy is a whole model"
    if source.base_is_here:
        what = "the gold world's own" if source.in_a_world else "a folder of this machine"
        return f"its base is {what}, on which an adapter alone would load nowhere else"
    if why := why_no_adapter(source):
        raise RecipeError(f"{source.text} cannot be one adapter on {source.base}: {why}. Write whole weights: --merge.")
    return None


def _write(source: Source, kind: str, folder: Path) -> list[str]:
    """Weights, tokenizer and generation config; what a user must know of them."""
    tokenizer, sampling, notes = copy.deepcopy(source.tokenizer), copy.deepcopy(source.sampling), []
    if kind == "adapter":
        composed = compose(source.adapters, source.base)
        composed.config.save_pretrained(folder)
        save_file(composed.weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        own = base_tokens(source.base, source.section)
        if tokenizer.pad_token not in own.get_vocab():  # training added it; the base has no row for it
            notes.append(_pad_with_the_bases(own, tokenizer))
            own.eos_token, tokenizer = tokenizer.eos_token, own
            sampling.pad_token_id = tokenizer.pad_token_id
    else:
        model = merged(source)
        model.generation_config = sampling
        model.config.use_cache, model.config.eos_token_id = True, tokenizer.eos_token_id
        model.save_pretrained(folder)
    tokenizer.chat_template = source.template
    if source.template != source.tokenizer.chat_template:
        notes.append(
            f"Its chat template asks the clock for the day, as the base's does; in training it was always "
            f"{source.section.chat_template_date}."
        )
    tokenizer.padding_side = "left"  # as decoding wants it
    tokenizer.save_pretrained(folder)
    sampling.save_pretrained(folder)
    return notes


def _pad_with_the_bases(own: Any, trained: Any) -> str:
    """Give the base's tokenizer a pad token that the base has, and say so."""
    own.pad_token = own.pad_token or own.unk_token or own.eos_token
    return (
        f"In training {trained.pad_token!r} padded, which was added for that and which the base has no embedding of; "
        f"here {own.pad_token!r} does. Padding is masked, so that replies are the same."
    )


def merged(source: Source) -> Any:
    """The whole model in its compute type, the policy's adapter added to the unquantised base."""
    section, adapter = source.section, source.subject.adapter
    model = load_causal_lm(source.subject.base, section, source.tokenizer, quantized=False)
    if adapter is not None:
        grow_for(model, adapter)
        check_saved(model, adapter, "policy adapter", alone=True)
        model.to(processes().device)  # where a large sum is quick
        model = PeftModel.from_pretrained(model, adapter, **onto_device_of(model)).merge_and_unload()
    return model.to("cpu", getattr(torch, section.dtype))


def _put_in_place(partial: Path, folder: Path) -> None:
    """By renaming, so that the folder is the old export or the new one, and never half of either."""
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)
