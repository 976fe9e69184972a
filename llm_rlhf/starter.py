"""The first recipe for somebody's base model, data and machine: commented, and one that loads; or those that ship.

What a local file holds is told by the rules that a run reads it by. Pairs make the whole chain; conversations alone
make supervised fine-tuning, as there is nothing to learn a reward from.
"""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from llm_rlhf.data.files import open_source
from llm_rlhf.data.formats.recognition import PAIRS, recognise
from llm_rlhf.data.formats.table import FORMATS
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.recipe.sections import Source, expanded, local_files
from llm_rlhf.shipped import shipped

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|txt)(\.gz)?$")


@dataclass(frozen=True)
class Hardware:
    """What a machine has room for."""

    what: str
    dtype: str
    rank: int
    batch: int  # rows of a step of SFT and of the reward model
    rollout: tuple[int, int, int]  # responses at once, steps gathered, minibatches: together those of a rollout
    episodes: int
    response_length: int
    prompts: int  # asked in the evaluation


HARDWARE = {
    "cpu": Hardware(
        "CPUs; for a tiny model, or to see that everything runs", "float32", 16, 8, (16, 1, 2), 1600, 64, 100
    ),
    "24": Hardware("one GPU of 24 GB", "bfloat16", 64, 8, (8, 2, 4), 20000, 256, 300),
    "80": Hardware("one GPU of 80 GB", "bfloat16", 64, 16, (16, 2, 4), 20000, 256, 300),
}


@dataclass(frozen=True)
class Seen:
    """What a source of data turned out to be."""

    pairs: bool  # else conversations to imitate
    told: str


def check_base(base: str) -> None:
    """RecipeError where this can be no base model: neither a folder of one nor a hub id."""
    folder = expanded(base)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise RecipeError(f"--base is {base!r}, a folder without config.json: it holds no model. Name another.")
    if folder.is_file() or not (folder.is_dir() or _HUB_ID.fullmatch(base)):
        raise RecipeError(f"--base is {base!r}, which is no folder here and no hub id (OWNER/NAME); mend the name.")


def look_at(data: str) -> Seen:
    """What a source holds, from the first rows of a file; of the hub's, nothing is asked, and pairs are expected.

    Raises:
        DataError: where there is no such file, its format is not known, or nothing can be learned from its rows.
    """
    is_folder = expanded(data).is_dir()
    if is_folder or (not local_files(data) and _HUB_ID.fullmatch(data) and not _FILE.search(data.lower())):
        return Seen(True, "not looked at yet; pairs are expected: llm-rlhf data check says what there is")
    source = Source(source=data)
    for opened in open_source(source, "the recipe"):
        try:
            form = recognise(opened, source, "preferences")
        except DataError as error:
            form = _other(opened, source, error)
        return Seen(form in PAIRS, f"{form}: {FORMATS[form].what}")
    raise DataError(f"There is no file {data}.")


def _other(opened: object, source: Source, of_pairs: DataError) -> str:
    """The format of rows that are no pairs."""
    try:
        return recognise(opened, source, "demonstrations")  # type: ignore[arg-type]
    except DataError:
        raise DataError(
            f"{of_pairs}\nA recipe needs pairs of replies of which one is better, or conversations to imitate."
        ) from None


def copy_recipes(to: Path) -> list[Path]:
    """The recipes that ship, copied into the folder, which is made; returns them as they lie there.

    Raises:
        RecipeError: where the folder has one of these files already (then none is written), or cannot be written to.
    """
    recipes = shipped("recipes")
    names = sorted(path.relative_to(recipes) for path in recipes.rglob("*") if path.suffix in (".yaml", ".sbatch"))
    if not names:
        raise RecipeError(f"The recipes that ship are not in {recipes}; install llm-rlhf from a clone or a wheel.")
    there = [to / name for name in names if (to / name).exists()]
    if there:
        raise RecipeError(f"{there[0]} is there already, and nothing is written over it; name another folder: --to.")
    try:
        for name in names:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipes / name, to / name)
    except OSError as error:
        raise RecipeError(f"{to} cannot be written to: {error}; name another folder: --to.") from None
    return [to / name for name in names]


def recipe_name(base: str, data: str) -> str:
    """A name for the run: of the model and of the data."""
    words = Path(base.rstrip("/")).name, Path(data.rstrip("/")).name.split(".")[0]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-.") or "run"


def recipe_text(path: Path, base: str, data: str, gpu: str, seen: Seen) -> str:
    """The recipe as YAML, a comment at every key; `path` is where it will be."""
    room, name = HARDWARE[gpu], recipe_name(base, data)
    parts = [_HEAD, _PAIRS if seen.pairs else _CONVERSATIONS, _SFT, *([_REWARD, _PPO, _EVALUATE] if seen.pairs else [])]
    at_once, gathered, minibatches = room.rollout
    purpose = "SFT, a reward model, PPO and a report" if seen.pairs else "SFT"
    result = f"runs/{name}/{'report.html' if seen.pairs else 'sft/model'}"
    return "\n".join([*parts, ""]).format(
        name=_scalar(name), base=_scalar(base), data=_scalar(data), told=seen.told, what=room.what, dtype=room.dtype,
        rank=room.rank, alpha=2 * room.rank, batch=room.batch, at_once=at_once, gathered=gathered,
        minibatches=minibatches, rollout=at_once * gathered * minibatches, episodes=room.episodes,
        response_length=room.response_length, prompts=room.prompts, result=result, purpose=purpose,
        path=shlex.quote(str(path)),
    )  # fmt: skip


def _scalar(value: str) -> str:
    """Text as YAML spells it in one line, within braces, too."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]


_HEAD = """\
# Purpose:   {purpose}
# Hardware:  {what}.
# Result:    {result}
# Launch:    llm-rlhf data check --recipe {path}
#            llm-rlhf run {path}
# More:      docs/recipes.md; key=value behind the recipe changes a key for one run
name: {name}  # the run's folder is runs/NAME
model:
  base: {base}  # hub id or folder of a causal language model, a base or a chat model
  dtype: {dtype}  # float32, or bfloat16 where the machine computes in it
  quantization: none  # nf4 holds the base in a quarter of the memory: for bases that do not fit otherwise
  lora: {{r: {rank}, alpha: {alpha}}}  # size and strength of what is trained beside the base, which stays as it is
data:"""
_PAIRS = """\
  preferences:  # two replies to a prompt, one of them better; more sources are more lines
    # {told}
    # objective: helpful, harmless, or overall where nobody says for what the better one is better (then the gate takes
    # gate.required: [harmful_refusals, over_refusal], as no side is measured by itself)
    - {{source: {data}, objective: overall}}
  prompts: {{from: preferences, limit: 20000}}  # what PPO answers: the pairs' own prompts, so many at most"""
_CONVERSATIONS = """\
  demonstrations:  # conversations to imitate; more sources are more lines
    # {told}
    - {{source: {data}}}
# These are no pairs of which one reply is better, so that no reward can be learned: this recipe ends with SFT. With
# pairs under data.preferences, sections reward, ppo and evaluate can follow, as llm-rlhf init writes them."""
_SFT = """\
sft:  # the base learns to answer at all; leave this section out where it is a chat model already
  learning_rate: 2.0e-4  # of LoRA; ten times less where the whole model is trained
  num_train_epochs: 1
  per_device_train_batch_size: {batch}  # lower where memory runs out
  max_length: 1024  # tokens of a conversation; longer ones lose their oldest turns"""
_REWARD = """\
reward:  # what PPO goes by, and a second, held-out one that only measures
  learning_rate: 1.0e-4
  num_train_epochs: 1  # more overfits
  per_device_train_batch_size: {batch}
  max_length: 1024"""
_PPO = """\
ppo:  # answers are sampled, scored, and made likelier the better they are
  kl_coef: 0.05  # what a nat of distance from the start costs: higher stays closer
  learning_rate: 2.0e-5
  total_episodes: {episodes}  # answers in all
  response_length: {response_length}  # tokens of an answer at most
  per_device_train_batch_size: {at_once}  # answers at once; lower where memory runs out, and raise the next one as much
  gradient_accumulation_steps: {gathered}
  num_mini_batches: {minibatches}  # with the two above: {rollout} answers between two looks at the rewards, 32 at least
  num_ppo_epochs: 2  # how often each of them is learned from"""
_EVALUATE = """\
evaluate:  # the policy against what it started from, on prompts that nothing was trained on
  prompts: {prompts}  # more narrow the intervals"""
