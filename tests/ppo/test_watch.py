"""The guard by objective: its tests by hand, its rule by simulation, its memory, and the preview by best of n."""

import json
import random
from math import comb

import pytest
from scipy import stats

from llm_rlhf.evaluation.report.watch_section import watch_section
from llm_rlhf.ppo.preview import preview, preview_lines, worsened
from llm_rlhf.ppo.snapshots import best, last_sound
from llm_rlhf.ppo.watch import Row, Watch, by_objective, changes, p_of_a_fall, p_of_signs


def row(
    side: str, refused: bool | None = False, heldout: float | None = 0.0, score: float = 0.0, length: int = 5
) -> Row:
    return Row(side, score, heldout, refused, length, paid=score)


def rows(side: str, refused: list[bool], heldout: list[float] | None = None) -> dict[int, Row]:
    scores = heldout or [0.0] * len(refused)
    return {i: row(side, r, h) for i, (r, h) in enumerate(zip(refused, scores, strict=True))}


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_means_by_objective_by_hand() -> None:
    found = by_objective(
        [row("harmless", True, 1.0, 3.0, 4), row("harmless", False, 0.0, 1.0, 8), row("helpful", None, None, 2.0, 5)]
    )
    assert found == {
        "harmless": {
            "prompts": 2, "scores": 2.0, "heldout_scores": 0.5, "refusal_rate": 0.5, "response_length": 6.0,
        },
        "helpful": {"prompts": 1, "scores": 2.0, "response_length": 5.0},  # no judge, no detector
    }  # fmt: skip


def test_sign_test_by_hand() -> None:
    assert p_of_signs(3, 0) == 1 / 8
    assert p_of_signs(3, 1) == (comb(4, 3) + comb(4, 4)) / 16
    assert p_of_signs(0, 4) == 1.0
    assert p_of_signs(0, 0) == 1.0  # nothing changed


def test_t_test_against_scipy() -> None:
    """Wallace's deviate is within 0.02 of the exact one at 15 degrees of freedom, out to 5 deviations."""
    rng = random.Random(0)
    for shift in (-2.0, -1.0, -0.3, 0.0, 1.0):
        differences = [rng.gauss(shift, 1) for _ in range(16)]
        exact = stats.ttest_1samp(differences, 0, alternative="less").pvalue
        assert stats.norm.ppf(p_of_a_fall(differences)) == pytest.approx(stats.norm.ppf(exact), abs=0.02)
    assert p_of_a_fall([-1.0] * 16) == 0.0
    assert p_of_a_fall([0.0] * 16) == p_of_a_fall([1.0] * 16) == 1.0


def test_each_side_is_compared_in_its_bad_direction() -> None:
    """Of 16 prompts 8 change: refused less is bad on harmless ones alone, refused more on helpful ones alone."""
    some, none = [True] * 8 + [False] * 8, [False] * 16
    for side, fall, rise in (("harmless", 1 / 256, 1.0), ("helpful", 1.0, 1 / 256)):
        found = {c.measure: c for c in changes(rows(side, some), rows(side, none))}
        assert (found["refusal_rate"].before, found["refusal_rate"].after, found["refusal_rate"].p) == (0.5, 0.0, fall)
        found = {c.measure: c for c in changes(rows(side, none), rows(side, some))}
        assert found["refusal_rate"].p == rise
    assert [c.measure for c in changes(rows("overall", some), rows("overall", none))] == ["heldout_scores"]
    assert changes(rows("harmless", some[1:]), rows("harmless", none[1:])) == []  # 15 prompts: too few


# ---- the rule --------------------------------------------------------------------------------------------------------


def simulate(runs: int, prompts: int, after: float, evaluations: int = 8, seed: int = 0) -> float:
    """Share of simulated runs in which the watch calls the harmless side worse; refusals .57 at the start.

    Each prompt has its own probability of being refused, that of the start spread around .57; the helpful side and the
    held-out scores do not change.
    """
    rng, alarms = random.Random(seed), 0
    for _ in range(runs):
        own = [min(max(rng.gauss(0.57, 0.3), 0), 1) for _ in range(prompts)]

        def sample(scale: float, own: list[float] = own) -> dict[int, Row]:
            found = {i: row("harmless", rng.random() < p * scale, rng.gauss(p, 1)) for i, p in enumerate(own)}
            return found | {
                prompts + i: row("helpful", rng.random() < 0.1 * p, rng.gauss(p, 1)) for i, p in enumerate(own)
            }

        start = sample(1.0)
        limit = 0.05 / (evaluations * 4)
        alarms += any(any(c.p < limit for c in changes(start, sample(after / 0.57))) for _ in range(evaluations))
    return alarms / runs


@pytest.mark.slow
def test_a_run_in_which_nothing_falls_is_seldom_warned_of() -> None:
    """At most .05 by design (.023 in 4,000 runs); 400 runs have a standard error of .011, so over .083 is a fault."""
    assert simulate(400, prompts=32, after=0.57) < 0.083


def test_the_collapse_is_seen_at_a_single_look() -> None:
    """Refusals 57 % to 4 %, as in the run that this guard was made for, on half of 64 prompts: at the first look."""
    limit, rng, seen = 0.05 / (8 * 4), random.Random(1), {}
    for prompts in (16, 32):
        hits = 0
        for _ in range(400):
            start, now = (rows("harmless", [rng.random() < p for _ in range(prompts)]) for p in (0.57, 0.04))
            hits += any(c.p < limit for c in changes(start, now))
        seen[prompts] = hits / 400
    assert seen[32] > 0.95
    assert 0.1 < seen[16] < 0.6  # why 16 is the least, and 32 is what 64 prompts of two sides give


# ---- the watch -------------------------------------------------------------------------------------------------------


def test_a_side_is_told_once_and_once_when_it_has_recovered(tmp_path) -> None:
    watch = Watch(tmp_path, level=0.05)
    course = [
        18,
        2,
        2,
        12,
        17,
        17,
    ]  # of 32 harmless prompts refused; chance alone gives less than 1 in 1,000 for 16 less
    told = []
    for step, refused in enumerate(course):
        told.append(
            watch.see(step, rows("harmless", [True] * refused + [False] * (32 - refused)), planned=5, write=True)
        )
    assert [[one["what"] for one in news] for news in told] == [[], ["worse"], [], [], ["recovered"], []]
    assert [line["worse"] for line in watch.lines] == [[], ["harmless"], ["harmless"], ["harmless"], [], []]
    assert [line["doubtful"] for line in watch.lines] == [[], ["harmless"], ["harmless"], ["harmless"], [], []]
    assert told[1][0]["text"] == (
        "On harmless prompts refusals fell from 56 % to 6 % since PPO began (32 prompts kept back, optimizer step 1): "
        "more than chance explains."
    )
    assert "nothing is shown to be worse any more" in told[4][0]["text"]


def test_over_refusal_and_the_held_out_score_in_one_sentence(tmp_path) -> None:
    watch = Watch(tmp_path, level=0.05)
    watch.see(0, rows("helpful", [False] * 20, [1.0 + 0.01 * i for i in range(20)]), planned=1, write=False)
    (news,) = watch.see(4, rows("helpful", [True] * 20, [0.02 * i for i in range(20)]), planned=1, write=False)
    assert news["text"].startswith(
        "On helpful prompts the held-out score fell from 1.09 to 0.19 and refusals rose from 0 % to 100 % since PPO"
    )
    assert not (tmp_path / "watch.jsonl").exists()


def test_without_a_look_at_the_start_the_first_evaluation_is_what_is_compared_with(tmp_path) -> None:
    watch = Watch(tmp_path, level=0.05)
    watch.see(2, rows("harmless", [True] * 20), planned=1, write=False)
    (news,) = watch.see(4, rows("harmless", [False] * 20), planned=1, write=False)
    assert "fell from 100 % to 0 % since the first evaluation, at optimizer step 2, (" in news["text"]


def test_a_resumed_watch_goes_on_from_its_log(tmp_path) -> None:
    whole, resumed = Watch(tmp_path / "a", 0.05), Watch(tmp_path / "b", 0.05)
    for watch in (whole, resumed):
        watch.log.parent.mkdir()
        for step, refused in enumerate((20, 1)):
            watch.see(step, rows("harmless", [True] * refused + [False] * (20 - refused)), planned=3, write=True)
    again = Watch(tmp_path / "b", 0.05)
    again.begin()
    assert again.worse == ["harmless"]
    for watch in (whole, again):
        watch.see(2, rows("harmless", [True] * 20), planned=3, write=True)
    assert whole.log.read_text() == again.log.read_text()
    assert [one["what"] for one in again.news] == ["worse", "recovered"]


def test_nothing_is_judged_without_a_level(tmp_path) -> None:
    watch = Watch(tmp_path, None)
    for step, refused in enumerate((True, False)):
        assert watch.see(step, rows("harmless", [refused] * 32), planned=1, write=False) == []
    assert watch.worse == []
    assert watch.lines[1]["sides"]["harmless"]["refusal_rate"] == 0.0


def test_the_summary(tmp_path) -> None:
    watch = Watch(tmp_path, 0.05)
    few = {100: row("helpful"), 101: row("helpful")}
    for step, refused in ((0, True), (2, True), (4, False)):
        watch.see(step, rows("harmless", [refused] * 20) | few, planned=2, write=False)
    watch.write_summary(tmp_path / "watch.json", "stop", kept_step=2, stopped_at=4)
    found = json.loads((tmp_path / "watch.json").read_text())
    assert found["prompts"] == {"harmless": 20, "helpful": 2}
    assert found["too_few"] == {"helpful": 2}
    assert found["worse_at_the_end"] == ["harmless"]
    assert found["worse_in_what_is_kept"] == []
    assert (found["kept_step"], found["stopped_at"], found["evaluations"]) == (2, 4, 3)


def test_the_best_snapshot_is_none_in_which_a_side_is_worse() -> None:
    def snapshot(step: int, heldout: float, worse: list[str]) -> dict:
        return {"step": step, "scores": 0.0, "heldout": heldout, "kl": step, "response_length": 5.0, "worse": worse}

    course = [
        snapshot(0, 0.1, []),
        snapshot(2, 0.5, []),
        snapshot(4, 0.9, ["harmless"]),
        snapshot(6, 0.8, ["harmless"]),
    ]
    assert best(course, None)["step"] == 2
    assert best(course, 1.0)["step"] == 0
    assert last_sound(course)["step"] == 2
    assert last_sound(course[:1] + course[2:])["step"] == 0
    with pytest.raises(
        ValueError, match=r"no side is worse has a KL within keep_kl_limit \(1.0 .* of 1 such ones is 2"
    ):
        best(course[1:], 1.0)
    assert best([course[0], course[2]], None)["step"] == 0  # the start is better than a gain that one side paid for


# ---- the preview -----------------------------------------------------------------------------------------------------


OF_ONE = 12.7062  # Student's t that holds 95 % with one degree of freedom, tan(.95 pi / 2)


def test_best_of_n_by_hand() -> None:
    """Two replies to each of two harmless prompts; of the second prompt's, both are equally well paid."""
    samples = [
        {0: row("harmless", True, 1.0, score=0.0), 1: row("harmless", True, 0.5, score=1.0)},
        {0: row("harmless", False, -1.0, score=2.0), 1: row("harmless", False, 0.1, score=1.0)},
    ]
    found = preview(samples, {0: "a", 1: "b"})["sides"]["harmless"]
    assert (found["prompts"], found["different_prompts"]) == (2, 2)
    assert (found["refusal_rate"]["average"], found["refusal_rate"]["best"]) == (0.5, 0.25)
    assert found["heldout_scores"]["best"] == pytest.approx((-1.0 + 0.3) / 2)
    assert found["scores"]["best"] == pytest.approx(1.5)
    # differences of refusals -.5 and 0: standard error .5 / 2 x sqrt(2) / sqrt(2) = .25, and t of one degree of freedom
    assert found["refusal_rate"]["low"] == pytest.approx(-0.25 - OF_ONE * 0.25, rel=1e-5)  # summed on a grid
    same = preview(samples, {0: "a", 1: "a"})["sides"]["harmless"]
    assert (same["different_prompts"], same["refusal_rate"]["low"]) == (1, None)  # one prompt has no interval


def pushed(chosen_refuses: bool, prompts: int = 20) -> dict:
    """Of two replies one refuses; the better paid one refuses or does not, on every prompt but the first."""
    refusing = {i: row("harmless", True, score=float(chosen_refuses)) for i in range(prompts)}
    other = {i: row("harmless", i == 0, score=float(not chosen_refuses)) for i in range(prompts)}
    return preview([refusing, other], {i: str(i) for i in range(prompts)})


def test_a_push_away_from_refusing_is_warned_of() -> None:
    assert worsened(pushed(False)) == ["harmless"]
    assert worsened(pushed(True)) == []
    assert worsened(pushed(False, prompts=10)) == []  # too few to say
    lines = preview_lines(pushed(False))
    assert lines[1].startswith("  harmless: refusals 52 % -> 5 %, held-out score 0.00 -> 0.00")
    assert "WARNING" in lines[-1]
    assert "WARNING" not in " ".join(preview_lines(pushed(True)))


# ---- what was compared is what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "heldout", "refused", "measured"),
    [
        ("overall", None, True, []),  # refusals are right or wrong by the objective alone
        ("overall", 0.5, True, ["heldout_scores"]),
        ("harmless", None, True, ["refusal_rate"]),
        ("harmless", 0.5, True, ["heldout_scores", "refusal_rate"]),
        ("helpful", 0.5, None, ["heldout_scores"]),
    ],
)
def test_a_side_that_nobody_measures_is_said_to_be_unjudged(tmp_path, side, heldout, refused, measured) -> None:
    """Scores of the training reward fall from 0 to -9: without a judge nobody would know, and the page must not say
    that no side got worse."""
    watch = Watch(tmp_path, level=0.05)
    for step, score in ((0, 0.0), (8, -9.0)):
        watch.see(step, {i: row(side, refused, heldout, score) for i in range(16)}, 2, write=True)
    assert watch.measured == {side: measured}
    watch.write_summary(tmp_path / "watch.json", "warn", 8, None)
    lines = watch_section([], {"guard": json.loads((tmp_path / "watch.json").read_text())})["guard"]
    assert any("No side was shown to get worse" in line for line in lines) == bool(measured)
    assert any("nothing but the training reward is known" in line for line in lines) == (not measured)
    assert any("held-out score" in line for line in lines) == ("heldout_scores" in measured)


def test_the_previews_interval_has_equal_prompts_as_one_cluster_by_hand() -> None:
    """Gains of 1 and 1 for a prompt asked twice, 0 and 0 for another: sqrt(2 / 1 * (1^2 + 1^2)) / 4 = .5 each way."""
    samples = [
        {
            i: Row(objective="helpful", score=s, heldout=None, refused=None, length=1, paid=s)
            for i, s in enumerate(scores)
        }
        for scores in ((2.0, 0.0, 1.0, 1.0), (0.0, 2.0, 1.0, 1.0))
    ]
    found = preview(samples, {0: "a", 1: "a", 2: "b", 3: "b"})["sides"]["helpful"]
    assert (found["prompts"], found["different_prompts"]) == (4, 2)
    assert (found["scores"]["average"], found["scores"]["best"]) == (1.0, 1.5)
    half = OF_ONE * 0.5
    assert (found["scores"]["low"], found["scores"]["high"]) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-5)
