"""The commands. Exit code 0: done; 1: it failed; 2: the request was wrong; 130: interrupted."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_rlhf.data_commands import data_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a base model to a measured, helpful and harmless chat model.",
)


app.add_typer(data_app, name="data")


@app.callback()
def _commands() -> None:
    """From a base model to a measured, helpful and harmless chat model."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. recipes/quickstart.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, laid over the recipe")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Archive this stage and all later ones; redo them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and paths as JSON at the end.")] = False,
) -> None:
    """Run a recipe's stages. Running it again resumes after the last stage that was finished.

    Example: llm-rlhf run recipes/quickstart.yaml seed=1 output_dir=runs/seed-1

    On several GPUs: accelerate launch -m llm_rlhf run recipes/hh.yaml
    """
    if only is not None and from_stage is not None:
        raise typer.BadParameter("--only and --from exclude each other; --from redoes the stage and all later ones.")
    with told_in_one_message():
        _quiet_warnings()
        from llm_rlhf.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())  # first: to import all that runs it takes seconds
        _quiet_libraries()
        from llm_rlhf.pipeline import run_recipe

        folder = run_recipe(loaded, only, from_stage)
        report = folder / "report.json"
        if not folder.state.is_main_process or not report.is_file():
            return
        _show(json.loads(report.read_text(encoding="utf-8")), folder / "report.html", as_json)


@app.command()
def evaluate(
    policy: Annotated[
        str | None, typer.Argument(help="run, RUN:STAGE, adapter, model, hub id, or URL#MODEL; none: --reward alone")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="POLICY", help="Compared with; else what the run started from.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="MODEL", help="What training went by; several: their mean."),
    ] = None,
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", metavar="MODEL", help="A second one that training never saw.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="JUDGE", help="local:MODEL, URL#MODEL or people:FILE.jsonl")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", metavar="SOURCE", help="File or hub id; else the run's, or ours.")
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--own", metavar="NAME=FILE,MODULE:FUNCTION", help="A suite of yours; ,lower if lower is better."),
    ] = None,
    hhh: Annotated[
        list[str] | None,
        typer.Option("--hhh", metavar="SOURCE", help="Pairs to tell the better of, all of them: BIG-bench or any."),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", metavar="SOURCE", help="Labelled pairs to test reward models on, all of them."),
    ] = None,
    refusals: Annotated[
        bool, typer.Option("--refusals/--no-refusals", help="Ask our prompts too, where no others show refusals.")
    ] = True,
    output: Annotated[str | None, typer.Option("--output", metavar="FOLDER", help="Where the report goes.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Prompts, of each kind, at most.")] = 300,
    response_length: Annotated[
        int | None, typer.Option("--response-length", min=1, help="Tokens of a reply; else as the run trained, or 128.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0: the likeliest token; else as trained, or 1.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Replies sampled at once.")] = 32,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32 or bfloat16, of models that are no run's.")
    ] = "float32",
    quantization: Annotated[str, typer.Option("--quantization", help="none, nf4 or int8, likewise.")] = "none",
    key_variable: Annotated[
        str | None, typer.Option("--key-variable", metavar="NAME", help="Environment variable with an API key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and paths as JSON at the end.")] = False,
) -> None:
    """Compare any policy with any other, by reward models, by a judge, and by what it refuses.

    Example: llm-rlhf evaluate runs/hh --reference Qwen/Qwen2.5-0.5B-Instruct --judge http://localhost:8000/v1#judge

    Without a policy, test reward models: llm-rlhf evaluate --reward path/to/model --pairs pairs.jsonl
    """
    with told_in_one_message():
        _quiet_libraries()
        from llm_rlhf.evaluating import evaluate as run_evaluation
        from llm_rlhf.evaluating_policies import Evaluation
        from llm_rlhf.evaluation.own_suites import suite_of
        from llm_rlhf.evaluation.subjects import start_of, subject_of
        from llm_rlhf.recipe import ModelSection, Source, check_own_suites
        from llm_rlhf.recipe_values import RecipeError, read_section

        suites = [suite_of(text) for text in own or []]
        check_own_suites(suites, key=None)
        defaults = read_section(ModelSection, {"dtype": dtype, "quantization": quantization}, "--")
        if policy is None:
            of_policies = {"--reference": reference, "--judge": judge, "--prompts": prompts, "--own": own, "--hhh": hhh}
            if idle := [option for option, value in of_policies.items() if value]:
                raise RecipeError(f"{idle[0]} asks policies, but none is named; name one, or leave the option out.")
            _evaluate_rewards(reward or [], heldout or [], pairs or [], output, defaults, seed, as_json)
            return
        judged = subject_of(policy, defaults)
        if reference is None and judged.run is None:
            raise RecipeError(f"{policy} is not part of a run; name what it is compared with: --reference POLICY.")
        compared = subject_of(reference, defaults) if reference is not None else start_of(judged)
        folder = Path(output) if output is not None else Path("evaluations") / f"{judged.name}-{compared.name}"
        report = run_evaluation(
            Evaluation(
                judged, compared, folder, [Source(source=name) for name in prompts or []], reward or [], heldout or [],
                judge, key_variable, limit, response_length, temperature, batch_size, seed=seed,
                own=suites, hhh=[Source(source=name) for name in hhh or []], refusals=refusals,
                pairs=[Source(source=name) for name in pairs or []],
            )
        )  # fmt: skip
        _show(report, folder / "report.html", as_json)


def _evaluate_rewards(
    reward: list[str], heldout: list[str], pairs: list[str], output: str | None, how: Any, seed: int, as_json: bool
) -> None:
    from llm_rlhf.evaluating_rewards import Rewards, evaluate_rewards
    from llm_rlhf.recipe import Source
    from llm_rlhf.recipe_values import RecipeError

    if not reward or not pairs:
        raise RecipeError(
            "Name a policy to evaluate, or a reward model and labelled pairs to test it on: --reward MODEL --pairs "
            "SOURCE."
        )
    folder = Path(output) if output is not None else Path("evaluations") / Path(reward[0]).name
    rewards = Rewards.of({"reward": reward, "heldout": heldout}, how)
    report = evaluate_rewards(rewards, [Source(source=name) for name in pairs], folder, seed=seed)
    _show(report, folder / "report.html", as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="run folders, or folders that evaluate wrote")],
    output: Annotated[str, typer.Option("--output", metavar="FOLDER", help="Where the page goes.")] = "comparison",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table and paths as JSON at the end.")] = False,
) -> None:
    """Put several runs on one page: what each gained, and what they gained together.

    Example: llm-rlhf compare runs/seed-0 runs/seed-1 runs/seed-2 --output comparison
    """
    with told_in_one_message():
        from llm_rlhf.evaluation.comparison import compare_runs, write_comparison

        found = compare_runs([Path(run) for run in runs])
        page = write_comparison(found, Path(output))
        if as_json:
            print(json.dumps({"comparison": found, "page": str(page)}, ensure_ascii=False))
        else:
            print(
                "\n".join([*found["summary"], *(f"note: {line}" for line in found["cautions"])]) + f"\n\nPage: {page}"
            )


def main() -> None:
    """Run the command line."""
    app()


@contextlib.contextmanager
def told_in_one_message() -> Iterator[None]:
    """What a person can mend becomes one message and an exit code; a fault of ours keeps its traceback."""
    from llm_rlhf.data.checks import DataError
    from llm_rlhf.recipe_values import RecipeError, RunError
    from llm_rlhf.run_folder import RunFolderError

    try:
        yield
    except (RecipeError, DataError, RunFolderError) as error:
        _say_error(str(error))
        raise typer.Exit(2) from None
    except RunError as error:
        _say_error(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say_error("interrupted. Run the same command again to go on after the last finished stage.")
        raise typer.Exit(130) from None


def _show(report: dict[str, Any], page: Path, as_json: bool) -> None:
    """The headline, the verdict and what a reader must be told before they believe it."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if as_json:
        told = {key: report[key] for key in ("headline", "verdict", "alarms")}
        print(json.dumps(told | {"report": str(page)}, ensure_ascii=False))
        return
    warnings_told = [f"warning: {line}" for line in report["alarms"]]
    print("\n".join(["", report["headline"]["text"], "", *report["verdict"], *warnings_told]) + f"\n\nReport: {page}")


def _say_error(message: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # one process of a launch speaks for all
        print(f"error: {message}", file=sys.stderr)


def _quiet_warnings() -> None:
    """Keep the libraries' warnings to developers off a user's screen."""
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("transformers", "trl", "peft", "torch", "accelerate", "datasets", "bitsandbytes"):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")


def _quiet_libraries() -> None:
    """Keep the libraries' notes to developers off a user's screen; errors still show."""
    _quiet_warnings()
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
