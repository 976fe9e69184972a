"""How replies of the policies on one base are decoded: by the plain loop, or compiled where enough steps are ahead.

An evaluation weighs nothing for what a sampler rounds, so that a policy is only sampled from what it is: from a copy
with its LoRA merged where that is exact (float32; see merged.py), in bfloat16 from its adapter beside the base. That
compiles as well: each set of adapters that is on is a graph of its own, for each length of the cache.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from llm_rlhf.launch import processes
from llm_rlhf.models.base import announce
from llm_rlhf.models.memory import make_room
from llm_rlhf.models.merged import is_exact
from llm_rlhf.models.sampler import CANNOT_COMPILE, WORTH_IT, PolicySampler, can_compile

ROOM = 4  # times the length that it takes a cache may have: each further length is compiled for a minute


def decoding_steps(replies: int, batch_size: int, response_length: int) -> int:
    """Steps of a process that samples its share of so many replies."""
    return -(-replies // (processes().num_processes * batch_size)) * response_length


def compiles(how: str, steps: int, device: str) -> bool:
    """Whether so many decoding steps ahead are compiled, where the model allows it.

    Args:
        how: "auto", "plain" or "compiled".
        device: its type.
    """
    return how == "compiled" or (how == "auto" and device == "cuda" and steps >= WORTH_IT)


class ReplyDecoding:
    """Samplers of the policies on one base, each settled when its first replies are asked for.

    Args:
        model: what `load_roles` gave.
        how: "plain"; "compiled"; "auto": compiled on CUDA where 2,000 decoding steps of a policy or more are ahead.

    Attributes:
        used: for the record, what replies were sampled from ("sampled_from") and how ("decoding").

    Raises:
        ValueError: where it must be compiled and cannot be.
    """

    def __init__(self, model: Any, how: str = "auto") -> None:
        self.base, self.how = model.get_base_model() if hasattr(model, "get_base_model") else model, how
        if how == "compiled" and not can_compile(self.base):
            raise ValueError(CANNOT_COMPILE.format(type(self.base).__name__))
        self.used: defaultdict[str, set[str]] = defaultdict(set)
        self._ahead: Counter[tuple[str, ...]] = Counter()  # steps that were foreseen and not yet asked for
        self._compiled: set[tuple[str, ...]] = set()  # adapters whose step is
        self._plain: PolicySampler | None = None
        self._beside: PolicySampler | None = None  # compiled, whatever adapters are on
        self._merged: tuple[str, PolicySampler] | None = None  # compiled, of the adapter that was sampled last

    def foresee(self, adapters: Sequence[str], replies: int, batch_size: int, response_length: int) -> None:
        """Count replies that these adapters will be asked for in one call, so that what pays is compiled at once."""
        self._ahead[tuple(adapters)] += decoding_steps(replies, batch_size, response_length)

    def settle(
        self, adapters: Sequence[str], asked: int, known: int, temperature: float, batch_size: int, response_length: int
    ) -> PolicySampler:
        """What samples the base with these adapters, which the caller switches on; every process must ask for it.

        Args:
            asked, known: replies of this call, and how many of them need not be sampled.
        """
        key = tuple(adapters)
        self._ahead[key] = max(0, self._ahead[key] - decoding_steps(asked, batch_size, response_length))
        steps = decoding_steps(asked - known, batch_size, response_length) + self._ahead[key]
        may = asked > known and (key in self._compiled or compiles(self.how, steps, self.base.device.type))
        if may and can_compile(self.base):
            if not self._compiled:
                announce("replies are decoded by a compiled step; the first batch takes a minute more on a GPU.")
            self._compiled.add(key)
            found = self._compiling(key, batch_size)
        else:
            found = self._plain = self._plain or self._sampler(None)
        if asked > known:
            told = found.told if adapters else found.told | {"sampled_from": "the base alone"}
            for name, value in told.items():
                self.used[name].add(value)
        found.temperature = temperature
        return found

    def forget(self, adapter: str) -> None:
        """Give back what was made for an adapter whose weights go."""
        self._compiled.discard((adapter,))
        if self._merged is not None and self._merged[0] == adapter:
            self._merged = None

    def _compiling(self, adapters: tuple[str, ...], rows: int) -> PolicySampler:
        if len(adapters) == 1 and is_exact(self.base, self.base.dtype):
            if self._merged is None or self._merged[0] != adapters[0]:
                self._merged = None  # before there is another: one copy at a time
                make_room()
                self._merged = adapters[0], self._sampler(adapters[0], merge=None, compiled_rows=rows, room=ROOM)
            if self._merged[1].copy is not None:  # there was memory for it, and it can be merged
                return self._merged[1]
        self._beside = self._beside or self._sampler(None, compiled_rows=rows, room=ROOM)
        return self._beside

    def _sampler(self, adapter: str | None, merge: bool | None = False, **how: Any) -> PolicySampler:
        return PolicySampler(self.base, self.base.dtype, 1.0, adapter, may_round=False, merge=merge, **how)
