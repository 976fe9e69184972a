"""FSDP2 on CPU processes, which torch can do and accelerate has for accelerators only.

accelerate passes over ACCELERATE_USE_FSDP where there is no accelerator, and takes DDP without a word. Here its state
is told after the fact, before anything has asked for it; everything after that is accelerate's own FSDP2.
"""

import functools
import os
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from llm_rlhf import spreading

# What `accelerate launch --config_file recipes/accelerate/fsdp2.yaml` puts into the environment.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def shard() -> None:
    """From now on, this process' accelerators shard."""
    os.environ.update(FSDP2)
    spreading.has_accelerator = lambda: True
    initialise = AcceleratorState.__init__

    @functools.wraps(initialise)
    def sharding(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)  # each time it takes its kind from PartialState
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = sharding


def command(*arguments: str) -> None:
    """`llm-rlhf ARGUMENTS` under FSDP2."""
    from llm_rlhf.cli.main import main

    shard()
    sys.argv = ["llm-rlhf", *arguments]
    main()
