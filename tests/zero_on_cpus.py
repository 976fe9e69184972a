"""DeepSpeed's ZeRO-2 on CPU processes, which DeepSpeed can do and accelerate has for accelerators only.

accelerate leaves DeepSpeed out where it is told of CPUs, and takes DDP without a word; where it is not told, it takes
each CPU process of a launch for a run of its own. Here it is told of the backend alone; everything after that is
accelerate's and transformers' own.
"""

import os
import sys
from datetime import timedelta
from typing import Any

# What `accelerate launch --config_file recipes/accelerate/zero2.yaml` puts into the environment.
ZERO2 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_MIXED_PRECISION": "no",
}


def shard() -> None:
    """From now on, this process' trainings go through DeepSpeed's engine."""
    os.environ.update(ZERO2)
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    from accelerate import PartialState
    from transformers import training_args

    from llm_rlhf import launch, spreading
    from llm_rlhf.recipe import loading

    spreading.has_accelerator = lambda: True
    PartialState(backend="gloo", timeout=timedelta(seconds=launch.WAITS))
    defaults = loading.run_defaults

    def not_told_of_cpus(*args: Any) -> dict[str, Any]:
        return {**defaults(*args), "use_cpu": False, "ddp_backend": "gloo"}

    loading.run_defaults = not_told_of_cpus
    training_args.is_torch_bf16_gpu_available = lambda: True  # a GPU's answer; bfloat16 computes on CPUs, too


def command(*arguments: str) -> None:
    """`llm-rlhf ARGUMENTS` under ZeRO-2; says at last how many optimizer steps DeepSpeed made."""
    from llm_rlhf.cli.main import main

    shard()
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    steps, step = [], DeepSpeedZeroOptimizer.step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.partition_gradients)  # what makes it ZeRO-2, and not 1
        return step(self, *args, **kwargs)

    DeepSpeedZeroOptimizer.step = counted
    sys.argv = ["llm-rlhf", *arguments]
    try:
        main()
    finally:
        print(f"ZeRO-2: {sum(steps)} steps")


def command_at(stage: str, *arguments: str) -> None:
    """The same with another stage of ZeRO."""
    ZERO2["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = stage
    command(*arguments)


def command_with_a_gradient_of_no_number(*arguments: str) -> None:
    """The same where, from the second forward on, the loss is finite and its gradient is not."""
    from trl import SFTTrainer

    loss_of, calls = SFTTrainer.compute_loss, []

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = loss_of(self, model, *args, **kwargs)
        calls.append(1)
        nothing = sum((p * 0.0).sum() for p in model.parameters() if p.requires_grad)
        return loss + nothing.sqrt() if len(calls) > 1 else loss  # 0, whose slope is without end

    SFTTrainer.compute_loss = compute_loss
    command(*arguments)
