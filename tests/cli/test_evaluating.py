"""`llm-rlhf evaluate` and `compare`, as their user runs them, on tiny random models."""

import json
import shutil
from pathlib import Path

import pytest
from endpoint_stand_in import StandIn, letters, reply
from launching import start
from model_helpers import random_policy_adapter, random_reward_adapter
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.reward.model import RewardModel
from llm_rlhf.world.base_model import shipped_base

WORDS = (
    "why",
    "not",
    "tell",
    "me",
    "more",
    "of",
    "it",
    "go",
    "on",
    "and",
    "then",
    "what",
    "else",
    "is",
    "there",
    "now",
)
LENGTH = ["--response-length", "8", "--batch-size", "16"]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory, base_folder) -> Path:
    return random_policy_adapter(base_folder, tmp_path_factory.mktemp("policy"), seed=5, r=4)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": f"{WORDS[i % 16]} {WORDS[i // 2 % 16]} {i}?", "objective": ("helpful", "harmless")[i % 2]}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def own_suite(tmp_path, monkeypatch) -> str:
    """A suite of a user's: a file of prompts and one function, both in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_suites.py").write_text(
        "def brevity(prompts, replies):\n"
        "    return [None if prompt[-1]['content'] == 'one' else -len(reply)\n"
        "            for prompt, reply in zip(prompts, replies)]\n"
    )
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("one", "two", "three")))
    return "brevity=mine.jsonl,my_suites:brevity"


@pytest.fixture
def task_file(tmp_path) -> Path:
    """Comparisons in the format of BIG-bench."""
    examples = [
        {"input": f"\n\nHuman: {word}?\n\nAssistant:", "target_scores": {word: 0, f"yes, {word}": 1}} for word in WORDS
    ]
    (tmp_path / "honest").mkdir()
    (tmp_path / "honest" / "task.json").write_text(json.dumps({"examples": examples}))
    return tmp_path / "honest" / "task.json"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def without_times(report: dict) -> str:
    return json.dumps({**report, "run": {**report["run"], "seconds": 0}}, sort_keys=True)


@pytest.mark.slow
def test_an_adapter_against_its_base(
    base_folder, reward_folder, policy_folder, prompts_file, own_suite, task_file, tmp_path
) -> None:
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    asked = ["evaluate", f"tuned={policy_folder}", "--reference", f"start={base_folder}", "--reward", reward_folder,
             "--heldout", heldout, "--prompts", prompts_file, "--own", own_suite,
             "--hhh", task_file, "--limit", "24", *LENGTH]  # fmt: skip
    told = json.loads(run(*asked, "--output", tmp_path / "one", "--json").strip().splitlines()[-1])
    report = report_of(tmp_path / "one")
    assert told["verdict"] == report["verdict"]
    found = {(e["name"], e["subject"], e["reference"], e["split"]): e for e in report["estimates"]}
    gain = found["heldout_reward_gain", "tuned", "start", "all"]
    rows = [json.loads(line) for line in (tmp_path / "one" / "replies.jsonl").read_text().splitlines()]
    assert gain["n"] == len(rows) == 24
    assert gain["estimate"] == pytest.approx(sum(r["tuned"]["heldout"] - r["start"]["heldout"] for r in rows) / 24)
    assert found["kl", "tuned", "start", "all"]["estimate"] > 0
    subjects = {s for e in report["estimates"] for s in (e["subject"], e["reference"])}
    assert subjects == {"tuned", "start", "reward", "heldout", "baseline", None}  # the last ones on hhh's pairs
    page = (tmp_path / "one" / "report.html").read_text()
    assert "tuned" in page

    mine = [json.loads(line) for line in (tmp_path / "one" / "replies_brevity.jsonl").read_text().splitlines()]
    assert [row["tuned"]["value"] for row in mine] == [None, *(-len(row["tuned"]["reply"]) for row in mine[1:])]
    brevity = found["brevity_gain", "tuned", "start", "all"]
    assert brevity["estimate"] == sum(row["tuned"]["value"] - row["start"]["value"] for row in mine[1:]) / 2
    assert report["own"]["brevity"]["not_scored"] == {"tuned": 1, "start": 1}
    assert "By my_suites:brevity, on 3 prompts of its own; higher is better." in page
    for who in ("tuned", "start", "reward", "heldout"):
        assert found["hhh_accuracy", who, None, "honest"]["n"] == len(WORDS)
    assert ("hhh_accuracy_change", "tuned", "start", "all") in found
    assert found["hhh_longer_reply_accuracy", "baseline", None, "all"]["estimate"] == 1.0
    assert "Knows the better reply" in page
    assert '">PPO</span>' not in page

    # The same in another folder, where nothing is cached: the same to the byte, times aside; in another batch size too.
    run(*asked, "--output", tmp_path / "two")
    assert without_times(report_of(tmp_path / "two")) == without_times(report)
    batches = [*asked]
    batches[batches.index("16")] = "5"
    run(*batches, "--no-refusals", "--output", tmp_path / "three")
    assert (tmp_path / "three" / "replies.jsonl").read_bytes() != b""
    texts = [
        [json.loads(line)["tuned"]["reply"] for line in (tmp_path / f / "replies.jsonl").open()]
        for f in ("one", "three")
    ]
    assert texts[0] == texts[1]

    output = run("compare", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both")
    assert "together" not in output  # one policy is one repetition, of which there is no spread
    both = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert both["cautions"] == [
        "one and two are one and the same policy. It is one repetition: no mean over runs counts two beside one."
    ]
    assert both["cautions"][0] in output
    assert "Before you believe it" in (tmp_path / "both" / "comparison.html").read_text()
    held = next(row for row in both["rows"] if row["name"] == "heldout_reward_gain" and row["split"] == "all")
    assert held["each"][0]["estimate"] == held["each"][1]["estimate"]
    assert (held["together"], both["headline"]) == (None, None)
    assert any(row["name"] == "brevity_gain" for row in both["rows"])
    assert "Brevity" in (tmp_path / "both" / "comparison.html").read_text()
    assert {row["player"] for row in both["ratings"]} == {"start", "one", "two"}
    twins = [row["rating"]["estimate"] for row in both["ratings"] if row["player"] != "start"]
    assert twins[0] == pytest.approx(twins[1])
    assert "<script" not in (tmp_path / "both" / "comparison.html").read_text()


@pytest.mark.slow
def test_an_endpoint_is_judged_by_an_endpoint(base_folder, prompts_file, task_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-of-mine")

    def script(body: dict, number: int) -> object:
        if body["model"] == "policy":
            return reply("a reply of the server's")
        return reply("A", logprobs=letters({"A": 0.9, "B": 0.1}))  # a judge that always takes the first

    server = StandIn(script)
    try:
        run("evaluate", f"{server.url}#policy", "--reference", f"start={base_folder}", "--prompts", prompts_file,
            "--hhh", task_file, "--judge", f"{server.url}#judge", "--key-variable", "MY_KEY", "--limit", "24", *LENGTH,
            "--output", tmp_path / "out")  # fmt: skip
    finally:
        server.close()
    report = report_of(tmp_path / "out")
    found = {(e["name"], e["split"]): e for e in report["estimates"] if e["subject"] != "start"}
    assert found["win_rate", "judge"]["estimate"] == 0.5  # its two orders disagree everywhere
    assert found["response_words", "all"]["estimate"] == 5.0  # "a reply of the server's": its tokens are not known
    assert ("response_length", "all") not in found
    assert report["provenance"]["instruments"]["judge"]["counts"]["flips"] == 24
    assert {e["subject"] for e in report["estimates"] if e["name"] == "hhh_accuracy"} == {"start"}
    assert any("hhh was not asked of policy: an endpoint" in alarm for alarm in report["alarms"])
    assert "secret-of-mine" not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "./nowhere"], "There is no policy at"),
        (["evaluate", "some/model"], "The policy 'some/model' is no folder here and not in the hub's cache"),
        (["evaluate", str(shipped_base())], "not part of a run; name what it is compared with"),
        (["evaluate", "a=some/model", "--reference", "a=other/model"], "both called 'a'"),
        (["evaluate", "a", "--reference", "b", "--own", "x=file.jsonl"], "is not of the form NAME=SOURCE"),
        (
            ["evaluate", "a", "--reference", "b", "--own", "kl=f.jsonl,m:f"],
            "'kl', as is a measure of the report's own",
        ),
        (["compare", "./nowhere", "./there"], "There is no folder nowhere"),
        (["compare", "./nowhere"], "at least two runs"),
    ],
)
def test_wrong_requests_are_told_in_one_message(arguments, message, capsys) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output + (result.stderr or "")


@pytest.fixture
def pairs_file(tmp_path) -> Path:
    """Forty pairs of which the chosen reply is the longer one in three of four, and one that no context holds."""
    rows = [
        {"prompt": f"{WORDS[i % 16]} {i}?", "chosen": "yes" + " yes" * 3 * (i % 4 > 0), "rejected": "no, no",
         "objective": ("helpful", "harmless")[i % 2]}
        for i in range(40)
    ]  # fmt: skip
    rows.append({"prompt": "why?", "chosen": "because " * 3000, "rejected": "no", "objective": "helpful"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_reward_models_alone_on_labelled_pairs(base_folder, reward_folder, pairs_file, tmp_path) -> None:
    other = random_reward_adapter(base_folder, tmp_path / "other", seed=3)
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    told = run("evaluate", "--reward", reward_folder, "--reward", other, "--heldout", heldout, "--pairs", pairs_file,
               "--output", tmp_path / "out")  # fmt: skip
    report = report_of(tmp_path / "out")
    assert told.strip().startswith(report["headline"]["text"])
    assert "\nOverall: " in told
    found = {(e["name"], e["subject"], e["split"]): e for e in report["estimates"]}
    assert found["longer_reply_accuracy", "baseline", "all"]["estimate"] == 0.75
    assert found["reward_accuracy", "reward", "all"]["n"] == 40
    assert found["reward_accuracy", "heldout", "helpful"]["n"] == 20
    assert report["data"]["pairs"]["fitted"] == {"kept": 40, "too_long": 1}
    assert report["reward_model"]["agreement"] is not None
    assert {"reward/other", "heldout"} <= report["provenance"]["instruments"].keys()
    assert report["provenance"]["instruments"]["heldout"]["scores_moved_with_the_batch"] < 1e-4
    assert len(report["provenance"]["hashes"]["pairs"]) == 64

    # The mean of the two members, scored by the library itself, is right as often.
    model = RewardModel.from_pretrained([reward_folder, other])
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()[:40]]
    chosen, rejected = (model.score([(r["prompt"], r[side]) for r in rows]) for side in ("chosen", "rejected"))
    assert found["reward_accuracy", "reward", "all"]["estimate"] == (chosen > rejected).mean()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Can the reward models be trusted?" in page
    assert "Before and after" not in page


@pytest.mark.slow
def test_pairs_beside_a_policy(base_folder, reward_folder, policy_folder, prompts_file, pairs_file, tmp_path) -> None:
    asked = ["evaluate", f"tuned={policy_folder}", "--reference", f"start={base_folder}", "--prompts", prompts_file,
             "--pairs", pairs_file, "--limit", "4", "--no-refusals", *LENGTH, "--output", tmp_path / "out"]  # fmt: skip
    result = CliRunner().invoke(app, [str(a) for a in asked])
    assert result.exit_code == 2
    assert "--pairs test reward models, and there is none; name one: --reward MODEL" in result.output
    run(*asked, "--reward", reward_folder)
    report = report_of(tmp_path / "out")
    assert {("reward_accuracy", "reward"), ("reward_gain", "tuned"), ("brier", "reward")} <= {
        (e["name"], e["subject"]) for e in report["estimates"]
    }
    assert report["provenance"]["hashes"].keys() == {"prompts", "pairs", "chat template"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name a policy to evaluate, or a reward model and labelled pairs"),
        (["--reward", "BASE", "--pairs", "PAIRS"], "a reward model has one: AutoModelForSequenceClassification"),
        (["--reward", "REWARD", "--pairs", "none.jsonl"], "There is no file none.jsonl"),
    ],
)
def test_what_is_missing_to_test_a_reward_model_is_told(
    base_folder, reward_folder, pairs_file, arguments, words
) -> None:
    known = {"BASE": base_folder, "REWARD": reward_folder, "PAIRS": pairs_file}
    result = CliRunner().invoke(app, ["evaluate", *(str(known.get(a, a)) for a in arguments)])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.slow
def test_two_processes_find_what_one_finds(
    base_folder, reward_folder, policy_folder, prompts_file, pairs_file, tmp_path
) -> None:
    asked = ["evaluate", f"tuned={policy_folder}", "--reference", f"start={base_folder}", "--prompts", prompts_file,
             "--reward", reward_folder, "--pairs", pairs_file, "--no-refusals", *LENGTH]  # fmt: skip
    run(*asked, "--output", tmp_path / "one")
    start(*asked, "--output", tmp_path / "two", processes=2, folder=tmp_path / "said").finish()
    one, two = (report_of(tmp_path / name) for name in ("one", "two"))
    assert two["run"]["processes"] == 2
    for a, b in zip(one["estimates"], two["estimates"], strict=True):
        assert [a[key] for key in ("name", "subject", "split", "n")] == [
            b[key] for key in ("name", "subject", "split", "n")
        ]
        assert a["estimate"] == pytest.approx(b["estimate"], abs=1e-4)  # read in other batches, fp32
    assert {path.name for path in (tmp_path / "two" / "cache").iterdir()} == {
        "start-0.jsonl", "start-1.jsonl", "tuned-0.jsonl", "tuned-1.jsonl"
    }  # fmt: skip


def test_a_reward_model_whose_scores_go_by_the_batch_is_refused(
    reward_folder, pairs_file, tmp_path, monkeypatch
) -> None:
    own = RewardModel.scores_each

    def leaking(self, conversations, token_budget=None, **how):
        return own(self, conversations, token_budget, **how) + (0.01 if token_budget is None else 0.0)

    monkeypatch.setattr(RewardModel, "scores_each", leaking)
    asked = ["evaluate", "--reward", reward_folder, "--pairs", pairs_file, "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(a) for a in asked])
    assert result.exit_code == 2
    assert "move by 0.01 with the batch (at most 0.0001 is rounding): it cannot judge" in result.output


def told(*arguments: object, code: int = 2) -> str:
    """What the command says where it cannot do what was asked."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return " ".join(result.output.split())


def test_what_cannot_be_done_is_told_before_anything_is_loaded(
    base_folder, policy_folder, prompts_file, tmp_path
) -> None:
    asked = ["evaluate", f"tuned={policy_folder}", "--reference", f"start={base_folder}", "--prompts", prompts_file]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "nobody.jsonl").write_text("")
    for options, words in (
        (["--output", tmp_path / "run"], "is a run or a part of one, whose own files stand there; name another"),
        (["--output", tmp_path / "file"], "Nothing can be written into the folder"),
        (["--judge", "gpt"], "is not known; write local:MODEL"),
        (["--judge", f"local:{tmp_path}"], "holds no config.json and is no model"),
        (["--judge", f"people:{tmp_path / 'none.jsonl'}"], "names a file of verdicts that is not there"),
        (["--judge", "http://localhost:9/v1#m", "--key-variable", "NOT_SET"], "NOT_SET"),
        (["--snapshot-prompts", 5], "--snapshot-prompts is 5; a curve takes 20 prompts or more"),
        (["--snapshot-prompts", 20], "tuned is no policy of a run that kept snapshots; name one that is"),
        (["--snapshot-prompts", 20, "--limit", 10], "--limit is 10; a curve takes 20 prompts or more"),
        (["--best-of-n", 4], "--best-of-n is asked of the prompts of --snapshot-prompts, and there are none"),
    ):
        assert words in told(*asked, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out" / "cache").exists()
    assert "is called 'reward', as one of the report's judges is" in told(
        "evaluate", f"reward={policy_folder}", "--reference", base_folder, "--output", tmp_path / "out"
    )
    assert "--judge asks policies, but none is named" in told(
        "evaluate", "--reward", "x", "--pairs", "y", "--judge", "z"
    )


def test_a_held_out_model_that_training_went_by_is_no_judge(base_folder, reward_folder, pairs_file, tmp_path) -> None:
    asked = ["evaluate", "--reward", reward_folder, "--heldout", reward_folder, "--pairs", pairs_file]
    assert "is the one that training went by" in told(*asked, "--output", tmp_path / "out")


@pytest.mark.slow
def test_an_earlier_report_is_archived_and_lost_rows_are_told(reward_folder, pairs_file, tmp_path) -> None:
    rows = pairs_file.read_text().splitlines()
    pairs_file.write_text("\n".join([*rows[:30], *["{}"] * 4]) + "\n")
    asked = ["evaluate", "--reward", reward_folder, "--pairs", pairs_file, "--output", tmp_path / "out"]
    run(*asked)
    first = (tmp_path / "out" / "report.json").read_bytes()
    told_of = report_of(tmp_path / "out")["alarms"]
    assert "pairs: 4 of 34 rows were set aside; the others need not be like them." in told_of
    assert any("was tested on 30 pairs alone" in line for line in told_of)
    run(*asked, "--seed", "1")
    (archived,) = (tmp_path / "out" / "archive").iterdir()
    assert (archived / "report.json").read_bytes() == first
    assert (archived / "set_aside.jsonl").is_file()


def test_a_damaged_policy_and_a_damaged_report_are_named(base_folder, policy_folder, prompts_file, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(policy_folder, damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"no")
    asked = ["evaluate", damaged, "--reference", f"start={base_folder}", "--prompts", prompts_file, *LENGTH]
    assert f"cannot be loaded from {base_folder} or {damaged}" in told(*asked, "--output", tmp_path / "out")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{bro")
    assert f"{tmp_path / 'a' / 'report.json'} is no report" in told("compare", tmp_path / "a", tmp_path / "b")
    assert "is named twice" in told("compare", tmp_path / "a", tmp_path / "a")


@pytest.mark.slow
def test_replies_kept_from_an_earlier_request_are_told(base_folder, prompts_file, tmp_path) -> None:
    server = StandIn(lambda body, number: reply(f"the reply number {number}"))
    asked = ["evaluate", f"{server.url}#org/some-model", "--reference", f"start={base_folder}", "--limit", "4",
             "--prompts", prompts_file, "--no-refusals", *LENGTH, "--output", tmp_path / "out"]  # fmt: skip
    try:
        run(*asked)
        assert not any("kept from an earlier request" in line for line in report_of(tmp_path / "out")["alarms"])
        run(*asked)
    finally:
        server.close()
    report = report_of(tmp_path / "out")
    assert any("4 of 4 replies of some-model were kept from an earlier request" in line for line in report["alarms"])
