"""When memory runs out: the work is done again in halves, and what cannot be halved says what to lower.

transformers' `auto_find_batch_size` begins a training anew with smaller batches; here only the piece that failed is
done again, and the sizes that were asked for still say what is learned.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from llm_rlhf.errors import RunError, first_line
from llm_rlhf.progress import tell

Row = TypeVar("Row")
Found = TypeVar("Found")


ENOUGH = 16_384  # tokens that keep any GPU busy: more at once take more memory and no less time


def reading_budget(device: str) -> int | None:
    """Tokens of a forward without gradient on a device of this type, padding counted; None: any number, as on a CPU."""
    return None if device == "cpu" else ENOUGH


def token_budget(config: Any, checkpointing: bool, free_bytes: float) -> int:
    """Tokens of one forward and backward whose activations take about half of the free memory, 16,384 at most.

    Counted for a decoder of gated layers in a type of two bytes: a layer keeps some ten states as wide as the model and
    four as wide as its inner layer for each token; with checkpointing, one state a layer and two layers' worth while
    they are recomputed. It is a start, not a promise: what it gets wrong is halved.

    Args:
        config: a model's configuration.
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    layer = 2 * (10 * hidden + 4 * inner)
    each = 2 * hidden * text.num_hidden_layers + 2 * layer if checkpointing else (text.num_hidden_layers + 1) * layer
    return max(1, int(min(ENOUGH, free_bytes / 2 / each)))


class Portion:
    """How much goes through a model at once: everything, until memory runs out; from then on half as much.

    Args:
        what: the work, as a note and an error call it: "sampling".
        lower: the keys to lower where not even one row fits, as a sentence goes on with them.
        say: tells a note.
        halves: False where every process must make as many forwards, as under FSDP: then the first failure ends it.
        tokens: what a portion may hold from the beginning, padding counted; None: any number.
    """

    def __init__(
        self,
        what: str,
        lower: str,
        say: Callable[[str], None] = tell,
        halves: bool = True,
        tokens: int | None = None,
    ) -> None:
        self.what, self.lower, self.say, self.halves, self.tokens = what, lower, say, halves, tokens

    def rows(self, width: int) -> int | None:
        """How many rows of so many tokens go together; None: any number."""
        return None if self.tokens is None else max(1, self.tokens // width)

    def halve(self, rows: int, width: int, error: Exception) -> None:
        """Memory ran out over so many rows of so many tokens.

        Raises:
            RunError: where it was one row.
        """
        if rows <= 1:
            raise RunError(
                f"Memory ran out in {self.what}, at a single row of {width} tokens; lower {self.lower}. "
                f"({first_line(error)})"
            ) from error
        self.tokens = -(-rows // 2) * width
        self.say(
            f"  note: memory ran out in {self.what}, over {rows} rows of {width} tokens; from here on it takes "
            f"at most {self.tokens:,} tokens at once."
        )

    def run(
        self, work: Callable[[Sequence[Row]], Found], rows: Sequence[Row], width: int, most: int | None = None
    ) -> list[Found]:
        """`work` over all rows in as few portions as fit into memory, of `most` rows at most: one result for each."""
        found: list[Found] = []
        done = 0
        while done < len(rows):
            part = rows[done : done + min(self.rows(width) or len(rows), most or len(rows))]
            failed: Exception | None = None
            try:
                found.append(work(part))
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if not self.halves:
                    raise RunError(
                        f"Memory ran out in {self.what}, over {len(part)} rows of {width} tokens, which are not taken "
                        f"apart where processes go together; lower {self.lower}. ({first_line(error)})"
                    ) from error
                failed = error.with_traceback(None)  # whose frames hold what was computed
            if failed is None:
                done += len(part)
            else:
                make_room()
                self.halve(len(part), width, failed)
        return found


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the CPU's, is full."""
    if isinstance(error, RunError):  # which may quote one
        return False
    full = isinstance(error, torch.OutOfMemoryError)
    return full or (isinstance(error, Exception) and should_reduce_batch_size(error))


def make_room() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
