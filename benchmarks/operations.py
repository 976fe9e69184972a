"""How many operations a decoding step takes, and a micro-batch's scoring and update, before and after each change.

python benchmarks/operations.py       # two minutes on any CPU; writes OPERATIONS.md beside this file

"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from job import IDLE, MOVES, surroundings
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.models import compiled_layers
from llm_rlhf.models.adapters import POLICY, active_adapters
from llm_rlhf.models.base import leave_casts_to_autocast
from llm_rlhf.models.lora_sums import sum_in_products
from llm_rlhf.models.merged import MergedCopy
from llm_rlhf.models.roles import add_role_forward, scalar_head

ROWS, PROMPT, RESPONSE, PASSES = 4, 8, 8, 7
SHAPE = Qwen2Config(
    vocab_size=4096, hidden_size=64, intermediate_size=352, num_hidden_layers=24, num_attention_heads=14, head_dim=64,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = get_peft_model(Qwen2ForCausalLM(SHAPE).bfloat16(), LoraConfig(r=16, target_modules="all-linear"))
    base = model.get_base_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    base.value_head = scalar_head(SHAPE.hidden_size)
    add_fused_lm_head(base)
    add_role_forward(base)
    copied = MergedCopy(base, POLICY, torch.bfloat16)
    rows = []
    with active_adapters(base, [POLICY]):
        rows += counted("a decoding step, adapters beside the base", decoding(base))
        with copied.refreshed(seed=0) as plain:
            rows += counted("a decoding step, adapters merged into a copy", decoding(plain))
        by_peft(model)
        rows += counted("scoring: the policy and the reference, casts by PEFT", scoring(base))
        rows += counted("the update: forward and backward, casts by PEFT", update(base))
        leave_casts_to_autocast(model)
        rows += counted("scoring, casts left to autocast", scoring(base))
        rows += counted("the update, casts left to autocast", update(base))
        sum_in_products(model)
        rows += counted("scoring, LoRA added by the product too", scoring(base))
        rows += counted("the update, LoRA added by the product too", update(base))
        compiled_layers.compile_layers(model)
        works = {"scoring, layers compiled": scoring(base), "the update, layers compiled": update(base)}
        seconds = [timed(work) for work in works.values()]
        # Compiled once more, so that the profiler sees a CPU's kernels, which takes time.
        torch._dynamo.reset()
        compiled_layers.OPTIONS["cpp.enable_kernel_profile"] = True
        compiled_layers.compile_layers(model)
        rows += [counted(*work, known)[0] for work, known in zip(works.items(), seconds, strict=True)]
    text = page(rows)
    Path(__file__).with_name("OPERATIONS.md").write_text(text, encoding="utf-8")
    print(text)


def by_peft(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = True


def decoding(model: Any) -> Callable[[], Any]:
    """One step behind a prompt, as `generate` takes it: outside autocast."""
    cache = DynamicCache(config=SHAPE)
    with torch.no_grad():
        model(torch.randint(4096, (ROWS, PROMPT)), past_key_values=cache)

    def step() -> None:
        with torch.no_grad():
            model(torch.randint(4096, (ROWS, 1)), past_key_values=cache)

    return step


def joint(base: Any, **options: Any) -> Any:
    ids = torch.arange(ROWS * (PROMPT + RESPONSE)).reshape(ROWS, -1) + 5
    with torch.autocast("cpu", torch.bfloat16):
        return base(
            input_ids=ids, attention_mask=torch.ones_like(ids), response_mask=torch.ones(ROWS, RESPONSE), **options
        )


def scoring(base: Any) -> Callable[[], Any]:
    def score() -> None:
        with torch.no_grad():
            joint(base)
            with active_adapters(base, []):
                joint(base, with_value=False, with_entropy=False)

    return score


def update(base: Any) -> Callable[[], Any]:
    def learn() -> None:
        found = joint(base, with_entropy=False)
        (found["logprobs"].sum() + found["value_estimates"].sum()).backward()
        for parameter in base.parameters():
            parameter.grad = None

    return learn


def counted(what: str, work: Callable[[], Any], seconds: float | None = None) -> list[str]:
    """A row of the table: operations, casts and copies among them, milliseconds (measured here where not given)."""
    seconds = timed(work) if seconds is None else seconds
    work()
    operations = launched(work)
    moves = sum(count for name, count in operations.items() if name in MOVES)
    return [f"| {what} | {operations.total():,} | {moves:,} | {seconds * 1e3:.0f} |"]


def timed(work: Callable[[], Any]) -> float:
    """Seconds, the median of passes after two that are not counted."""
    seconds = []
    for _ in range(PASSES + 2):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


def launched(work: Callable[[], Any]) -> Counter[str]:
    """Operations by name: those that are made of no others, and kernels of compiled layers."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    return Counter(
        event.name.removeprefix("aten::")
        for event in profiled.events()
        if _computes(event) and not any(_computes(part) for part in _parts(event))
    )


def _parts(event: Any) -> list[Any]:
    return [deeper for part in event.cpu_children for deeper in (part, *_parts(part))]


def _computes(event: Any) -> bool:
    if "_cpp_fused_" in event.name:
        return True
    name = event.name.removeprefix("aten::")
    if name == event.name or name in IDLE:
        return False
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and not any(getattr(packet, overload).is_view for overload in packet.overloads())


ABOUT = """\
`python benchmarks/operations.py` makes this page. Counted by torch's profiler, views left out, a compiled kernel as
one: Qwen2.5 0.5B's 24 layers at a fourteenth of its width, LoRA in float32 on all linear layers of a base in bfloat16.
The counts hardly depend on the machine, and a GPU waits for their launches where a model is small or a batch is short.
The milliseconds are of one CPU core, where at that width arithmetic hardly counts. Layers compiled: `model.compile`.
About half of what is left are products of matrices, of which each LoRA adds two to every one of the base's."""


def page(rows: list[str]) -> str:
    facts = surroundings()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    measured = f"Measured with {versions}; {facts['threads']} threads; median of {PASSES} passes."
    head = ["| | operations | copies and casts | ms |", "|---|---|---|---|"]
    return "\n".join(["# Operations of a step", "", ABOUT, "", measured, "", *head, *rows, ""])


if __name__ == "__main__":
    main()
