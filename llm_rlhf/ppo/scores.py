"""From what several judges say to one score per response.

1. Reward models (adapters on the base, or models of their own) are combined: weighted, the least, or the mean less
   their disagreement.
2. Python functions are added to it, each with its weight.
3. The sum may be divided by its running deviation and clipped.

Layout: B rows, K reward models, F reward functions and models of their own.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.roles import HELDOUT, VALUE
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.objectives import Total
from llm_rlhf.ppo.reward_functions import checked
from llm_rlhf.recipe.loading import default_weights, trainer_config
from llm_rlhf.recipe.sections import Recipe, ScoreOptions, method_options, scored_method, stage_options
from llm_rlhf.statistics.intervals import Values
from llm_rlhf.user_code import FUNCTION, load_function

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")  # to functions, by TRL
THOUGHT = "thought"  # what functions get besides where prompts are messages: the thought before each reply, often empty
RESERVED = {POLICY, VALUE, HELDOUT, "ref", "spread"}  # names of roles, of TRL's copy for the reference, and of a metric


class Scores(NamedTuple):
    """What all sources say of B responses."""

    raw: Tensor  # (B,), all in one, before normalisation; NaN where nothing scores a row
    by_source: dict[str, Tensor]  # (B,) each, where there are several; "spread": reward models' standard deviation


class ScoreSources:
    """What scores a response: reward adapters first, then `reward_funcs`, each with its weight.

    Raises:
        ValueError: where there is no source, or `reward_weights` has another length.
    """

    def __init__(self, adapters: dict[str, Any], reward_funcs: Any, args: PPOConfig | ScoreOptions) -> None:
        if taken := sorted(RESERVED & adapters.keys()):
            raise ValueError(
                f"A reward adapter is called {taken[0]!r}, which is the name of another role; call it otherwise than "
                f"{', '.join(sorted(RESERVED))}."
            )
        given = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.adapters = list(adapters)
        self.functions = [load_function(f) if isinstance(f, str) and FUNCTION.match(f) else f for f in given]
        self.functions = [checked(f) if callable(f) and not isinstance(f, nn.Module) else f for f in self.functions]
        count = len(self.adapters) + len(self.functions)
        if count == 0:
            raise ValueError("There is nothing to score responses with; give reward_adapter, reward_funcs or both.")
        if args.reward_weights is not None and len(args.reward_weights) != count:
            raise ValueError(
                f"reward_weights has {len(args.reward_weights)} numbers, but there are {count} sources of scores: "
                f"{len(self.adapters)} adapters, then {len(self.functions)} reward_funcs."
            )
        self.weights = [1.0] * count if args.reward_weights is None else list(args.reward_weights)
        self.how, self.spread_coef = args.score_combination, args.score_spread_coef
        self.names = list(self.adapters)
        self.is_model = [True] * len(self.adapters)

    @property
    def may_be_silent(self) -> bool:
        """Whether a row may go without a score: where functions alone give them, and all may return None."""
        return not any(self.is_model)

    def check_signatures(self, columns: Sequence[str]) -> None:
        """Every Python function must take what TRL gives it: by name, and the data set's `columns` with it.

        Raises:
            ValueError: naming the function and what it does not take.
        """
        given = {*columns, *GIVEN} - {"prompt", "completion"}
        for function in self.functions:
            if not callable(function) or isinstance(function, nn.Module):  # a model
                continue
            try:
                signature = inspect.signature(function)
            except ValueError:  # of a builtin, which may not tell
                continue
            try:
                signature.bind(**dict.fromkeys(given))
            except TypeError as error:
                raise ValueError(
                    f"The reward function {function.__name__!r} cannot be called as reward functions are ({error}); "
                    "write it as def f(prompts, completions, **kwargs), which returns a number for each completion."
                ) from None

    @contextlib.contextmanager
    def parent_weights(self, args: PPOConfig) -> Iterator[None]:
        """While TRL's trainer is made, show it the weights of the sources it knows: `reward_funcs`."""
        own = args.reward_weights
        args.reward_weights = None if own is None else self.weights[len(self.adapters) :]
        try:
            yield
        finally:
            args.reward_weights = own

    def bind(self, reward_funcs: Sequence[Any], names: Sequence[str]) -> None:
        """Take in what TRL's trainer made of `reward_funcs`: loaded models, and a name for each."""
        self.names += [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
        self.is_model += [isinstance(f, nn.Module) for f in reward_funcs]

    def of_batch(self, adapter_scores: dict[str, Tensor], function_scores_BF: Tensor) -> Scores:
        """One score of each row, and those it is made of.

        A function that returned None for a row (NaN, as TRL makes of it) adds nothing to it. A row of which all sources
        are functions that did has no score: NaN.
        """
        columns = [adapter_scores[name].float() for name in self.adapters] + list(function_scores_BF.float().unbind(1))
        silent = [column.isnan() & (not is_model) for is_model, column in zip(self.is_model, columns, strict=True)]
        columns = [column.masked_fill(none, 0.0) for column, none in zip(columns, silent, strict=True)]
        weights = torch.tensor(self.weights, device=columns[0].device)
        models = [i for i, is_model in enumerate(self.is_model) if is_model]
        total = torch.zeros_like(columns[0])
        if models:
            total = combine(torch.stack([columns[i] for i in models], 1), self.how, weights[models], self.spread_coef)
        for i, is_model in enumerate(self.is_model):
            if not is_model:
                total = total + weights[i] * columns[i]
        total = total.masked_fill(torch.stack(silent).all(0), torch.nan)
        by_source = dict(zip(self.names, columns, strict=True)) if len(columns) > 1 else {}
        if len(models) > 1:
            by_source["spread"] = torch.stack([columns[i] for i in models], 1).std(1, correction=0)
        return Scores(total, by_source)


def combine(scores_BK: Tensor, how: str, weights_K: Tensor, spread_coef: float) -> Tensor:
    """One score per response from K reward models, shape (B,).

    `weighted` is the weighted sum. `minimum` is the least: the policy must please every model. `mean_minus_spread` is
    mean - spread_coef * standard deviation (divided by K) over an ensemble: the uncertainty-weighted objective of Coste
    et al. 2024 (arXiv:2310.02743), with the deviation in place of the variance.
    """
    if how == "weighted":
        return scores_BK @ weights_K
    if how == "minimum":
        return scores_BK.min(1).values
    return scores_BK.mean(1) - spread_coef * scores_BK.std(1, correction=0)


class RunningMoments:
    """Mean and variance of everything seen so far, taken in batch by batch and over all processes.

    Chan, Golub and LeVeque 1979, as one pooled update per rollout; kept in Python floats, which JSON stores exactly.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0  # squares: sum of squared deviations from the mean

    def update(self, values_B: Tensor, total: Total) -> None:
        values = values_B.to(torch.float32 if values_B.device.type == "mps" else torch.float64)  # MPS has no float64
        count = total(torch.tensor(float(len(values)), device=values.device, dtype=values.dtype)).item()
        if count == 0:  # on every process alike
            return
        mean = total(values.sum()).item() / count
        squares = total(((values - mean) ** 2).sum()).item()
        delta, together = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / together
        self.mean += delta * count / together
        self.count = together

    def normalised(self, values_B: Tensor, how: str) -> Tensor:
        """`values` divided by the running deviation; `whiten` first subtracts the running mean.

        One value alone has no deviation: it is not divided.
        """
        deviation = max(self.squares / (self.count - 1), 1e-8) ** 0.5 if self.count > 1 else 1.0
        return (values_B - self.mean if how == "whiten" else values_B) / deviation

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class ScoreMoments:
    """Running moments of the scores: of all together, or of every objective by itself.

    By objective, neither side is paid more for having the wider scores, and no side's mean counts against the other's.

    Args:
        objectives: the same on every process; one alone where scores are not told apart.
    """

    def __init__(self, objectives: Sequence[str] = ("all",)) -> None:
        self.of = {objective: RunningMoments() for objective in objectives}

    def _rows(self, objectives_B: Sequence[str]) -> Iterator[tuple[RunningMoments, list[int]]]:
        """The moments of each objective with the rows they are of."""
        apart = len(self.of) > 1
        for objective, moments in self.of.items():
            yield moments, [i for i, own in enumerate(objectives_B) if not apart or own == objective]

    @property
    def known(self) -> bool:
        """Whether any score has been seen."""
        return any(moments.count for moments in self.of.values())

    def update(self, scores_B: Tensor, objectives_B: Sequence[str], total: Total) -> None:
        for moments, rows in self._rows(objectives_B):
            moments.update(scores_B[rows], total)

    def normalised(self, scores_B: Tensor, objectives_B: Sequence[str], how: str) -> Tensor:
        """The scores, shape (B,), each by the moments of its objective; as they are where nothing was seen yet."""
        normalised_B = scores_B.clone()
        for moments, rows in self._rows(objectives_B):
            if moments.count:
                normalised_B[rows] = moments.normalised(scores_B[rows], how)
        return normalised_B

    def state_dict(self) -> dict[str, Any]:
        return {objective: moments.state_dict() for objective, moments in self.of.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != self.of.keys():
            raise ValueError(
                f"The checkpoint has score moments of {', '.join(state)}, this run of {', '.join(self.of)}; it was "
                "made by another version or with another score_normalization_by. Start PPO anew."
            )
        for objective, moments in self.of.items():
            moments.load_state_dict(state[objective])


def training_reward(recipe: Recipe, scores: Mapping[str, Values]) -> np.ndarray:
    """One score per response from those of the adapters by name: what PPO rewards, before its penalties. Float32.

    By the very function that PPO and the other methods combine them with. Functions are no part of it. A recipe whose
    method is paid by no scores takes the mean.
    """
    names = stage_options(recipe, "reward").adapters
    columns = {name: torch.tensor(np.asarray(scores[name]), dtype=torch.float32) for name in names}
    if scored_method(recipe) is None:
        return torch.stack(list(columns.values())).mean(0).numpy()
    args = copy.copy(weighing(recipe))
    args.reward_weights = args.reward_weights and args.reward_weights[: len(names)]
    sources = ScoreSources(dict.fromkeys(names), None, args)
    nothing_more = torch.zeros(len(columns[names[0]]), 0)
    return sources.of_batch(columns, nothing_more).raw.numpy()


def weighing(recipe: Recipe) -> Any:
    """What says how a recipe's method makes one score of several: PPO's configuration, or the method's options."""
    if recipe.ppo is not None:
        return trainer_config(recipe, "ppo", recipe.folder / "ppo")
    options: ScoreOptions = method_options(recipe)
    if options.reward_weights is None and options.score_combination == "weighted":
        options.reward_weights = default_weights(recipe)
    return options
