"""The commands `llm-rlhf evaluate` and `llm-rlhf compare`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_rlhf.cli.completion import policies
from llm_rlhf.cli.console import outlive
from llm_rlhf.cli.exits import quiet_libraries, said_aside, show, told_in_one_message
from llm_rlhf.cli.next_steps import after_comparison, after_evaluation, tell
from llm_rlhf.cli.options import Dtype, KeyVariable, Quantization, TrustRemoteCode, columns_of


def evaluate(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="run, RUN:STAGE, adapter, model, hub id, or URL#MODEL; none: --reward alone", autocompletion=policies
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="POLICY",
            help="Compared with; else what the run started from.",
            autocompletion=policies,
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="MODEL", help="What training went by; several: their mean."),
    ] = None,
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", metavar="MODEL", help="A second one that training never saw.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="JUDGE", help="local:MODEL, URL#MODEL or people:FILE|STORE")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", metavar="SOURCE", help="File or hub id; else the run's, or ours.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS", help="prompt=goal: other names of columns of --prompts."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--own", metavar="NAME=FILE,MODULE:FUNCTION", help="A suite of yours; ,lower if lower is better."),
    ] = None,
    hhh: Annotated[
        list[str] | None,
        typer.Option("--hhh", metavar="SOURCE", help="Pairs to tell the better of, all of them: BIG-bench or any."),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmarks", metavar="NAME=SOURCE", help="A public suite: xstest=FILE; docs/suites.md has all."
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", metavar="SOURCE", help="Labelled pairs to test reward models on, all of them."),
    ] = None,
    refusals: Annotated[
        bool, typer.Option("--refusals/--no-refusals", help="Ask our prompts too, where no others show refusals.")
    ] = True,
    snapshot_prompts: Annotated[
        int,
        typer.Option("--snapshot-prompts", min=0, help="Of the prompts, asked of all of a run's snapshots; 0: none."),
    ] = 0,
    best_of_n: Annotated[
        int, typer.Option("--best-of-n", min=0, help="Replies of the base to each of these; the best by the reward.")
    ] = 0,
    output: Annotated[
        str | None, typer.Option("--output", metavar="FOLDER", help="Where the report goes; else evaluations/NAMES.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Prompts, of each kind, at most; else as the run's recipe, or 300."),
    ] = None,
    response_length: Annotated[
        int | None, typer.Option("--response-length", min=1, help="Tokens of a reply; else as the run, or 128.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0: the likeliest token; else as the run, or 1.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Replies sampled at once; else as the recipe, or 32.")
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option("--decoding", help="plain, compiled, or auto: compiled where it pays; else as the recipe."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Else the run's, or 0.")] = None,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    key_variable: KeyVariable = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and paths as JSON at the end.")] = False,
) -> None:
    """Compare any policy with any other, by reward models, by a judge, and by what it refuses.

    Example: llm-rlhf evaluate runs/hh --reference Qwen/Qwen2.5-0.5B-Instruct --judge http://localhost:8000/v1#judge

    Without a policy, test reward models: llm-rlhf evaluate --reward path/to/model --pairs pairs.jsonl
    """
    outlive()
    with told_in_one_message():
        quiet_libraries()
        from llm_rlhf.errors import RecipeError
        from llm_rlhf.evaluation.evaluate import evaluate as run_evaluation
        from llm_rlhf.evaluation.judges.naming import check_judge
        from llm_rlhf.evaluation.report.assembly import check_output
        from llm_rlhf.evaluation.request import Evaluation
        from llm_rlhf.evaluation.subjects import folder_name, start_of, subject_of
        from llm_rlhf.evaluation.suites.benchmarks.loading import benchmark_of, check_benchmarks
        from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
        from llm_rlhf.evaluation.suites.own import TAKEN, suite_of
        from llm_rlhf.feedback.judging import store_of, with_verdicts
        from llm_rlhf.models.finding import check_there
        from llm_rlhf.recipe.checks import check_own_suites
        from llm_rlhf.recipe.loading import recipe_of
        from llm_rlhf.recipe.sections import EvaluateSection, ModelSection, Source
        from llm_rlhf.recipe.values import read_section

        names = columns_of(columns)
        if names and not prompts:
            raise RecipeError("--columns says what columns of --prompts are called, and no --prompts are named.")
        if number := next((name for name in prompts or [] if name.isdigit() and not Path(name).exists()), None):
            raise RecipeError(
                f"--prompts {number} is a number; it names a file or data set. How many are asked is --limit {number}."
            )
        suites = [suite_of(text) for text in own or []]
        check_own_suites(suites, key=None, taken=TAKEN)
        public = [benchmark_of(text) for text in benchmarks or []]
        check_benchmarks(public, "--benchmarks")
        how = {"dtype": dtype, "quantization": quantization, "trust_remote_code": trust_remote_code or False}
        defaults = read_section(ModelSection, how, "--")
        if decoding is not None:
            read_section(EvaluateSection, {"decoding": decoding}, "--")
        if policy is None:
            of_policies = {"--reference": reference, "--judge": judge, "--prompts": prompts, "--own": own, "--hhh": hhh,
                           "--benchmarks": [suite.name for suite in public if BENCHMARKS[suite.name].kind != "scores"],
                           "--snapshot-prompts": snapshot_prompts,
                           "--best-of-n": best_of_n}  # fmt: skip
            if idle := [option for option, value in of_policies.items() if value]:
                raise RecipeError(f"{idle[0]} asks policies, but none is named; name one, or leave the option out.")
            sources = [Source(source=name) for name in pairs or []]
            _evaluate_rewards(reward or [], heldout or [], sources, public, output, defaults, seed or 0, as_json)
            return
        judged = subject_of(policy, defaults)
        if reference is None and judged.run is None:
            if judged.url is None:
                check_there(judged.base, "The policy")
            raise RecipeError(f"{policy} is not part of a run; name what it is compared with: --reference POLICY.")
        compared = subject_of(reference, defaults) if reference is not None else start_of(judged)
        default = Path("evaluations") / folder_name((policy, judged), (reference, compared))
        folder = Path(output) if output is not None else default
        run = judged.run or compared.run
        recipe = recipe_of(run) if run is not None else None
        if store_of(judge) is not None:
            check_judge(str(judge))
            check_output(folder)
        asked = Evaluation(
            policy=judged,
            start=compared,
            output=folder,
            prompts=[Source(source=name, columns=names) for name in prompts or []],
            rewards=reward or [],
            heldout=heldout or [],
            judge=with_verdicts(judge, folder / "people", str(folder.absolute())),
            key_variable=key_variable,
            judge_key_variable=key_variable,
            own=suites,
            hhh=[Source(source=name) for name in hhh or []],
            benchmarks=public,
            pairs=[Source(source=name) for name in pairs or []],
            refusals=refusals,
            snapshot_prompts=snapshot_prompts,
            best_of_n=best_of_n,
            recipe=recipe,
        )
        named = {"limit": limit, "refusal_limit": limit, "response_length": response_length, "seed": seed,
                 "temperature": temperature, "batch_size": batch_size, "decoding_step": decoding}  # fmt: skip
        asked = asked.as_the_recipe().with_options(named)
        with said_aside(as_json):
            report = run_evaluation(asked)
        show(report, folder / "report.html", as_json)
        tell(after_evaluation(policy, reference, key_variable, folder), as_json)


def _evaluate_rewards(
    reward: list[str],
    heldout: list[str],
    pairs: list[Any],
    public: list[Any],
    output: str | None,
    how: Any,
    seed: int,
    as_json: bool,
) -> None:
    from llm_rlhf.errors import RecipeError
    from llm_rlhf.evaluation.reward_evaluation import evaluate_rewards
    from llm_rlhf.evaluation.rewards import Rewards

    if not reward or not (pairs or public):
        raise RecipeError(
            "Name a policy to evaluate, or a reward model and labelled pairs to test it on: --reward MODEL --pairs "
            "SOURCE, or --benchmarks rm_bench=SOURCE."
        )
    folder = Path(output) if output is not None else Path("evaluations") / _reward_name(Path(reward[0]).resolve())
    rewards = Rewards({"reward": reward, "heldout": heldout}, how)
    with said_aside(as_json):
        report = evaluate_rewards(rewards, pairs, folder, public, seed=seed)
    show(report, folder / "report.html", as_json)
    tell([("Look at pairs", ["data", "show", str(source.source)]) for source in pairs[:1]], as_json)


def _reward_name(folder: Path) -> str:
    """What tells a reward model from those of other runs: `hh-joint` of runs/hh/reward/joint."""
    run = folder.parents[1] if len(folder.parents) > 1 else folder
    return f"{run.name}-{folder.name}" if (run / "recipe.yaml").is_file() else folder.name


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="run folders, or folders that evaluate wrote", autocompletion=policies)
    ],
    output: Annotated[str, typer.Option("--output", metavar="FOLDER", help="Where the page goes.")] = "comparison",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table and paths as JSON at the end.")] = False,
) -> None:
    """Put several runs on one page: what each gained, and what runs of one recipe gained together.

    Example: llm-rlhf compare runs/seed-0 runs/seed-1 runs/seed-2 --output comparison
    """
    with told_in_one_message():
        from llm_rlhf.evaluation.report.comparison import compare_runs
        from llm_rlhf.evaluation.report.side_by_side import write_comparison

        with said_aside(as_json):
            found = compare_runs([Path(run) for run in runs])
            page = write_comparison(found, Path(output))
        if as_json:
            print(json.dumps({"comparison": found, "page": str(page)}, ensure_ascii=False))
        else:
            print(
                "\n".join([*found["summary"], *(f"note: {line}" for line in found["cautions"])]) + f"\n\nPage: {page}"
            )
        tell(after_comparison(runs), as_json)
