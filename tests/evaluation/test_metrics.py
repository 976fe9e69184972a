"""The statistics as `evaluate` metrics, without a network."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.agreement import krippendorff_alpha
from llm_rlhf.statistics.intervals import mcnemar, paired_bootstrap, wilson, win_rate

POLICY, REFERENCE = [1.2, 0.3, 0.9, 0.1, 2.0], [0.7, 0.3, 0.4, 0.5, 1.0]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No socket opens; what `evaluate` keeps goes to a folder of the test's own."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("a metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    return


def test_every_metric_loads_and_describes_itself() -> None:
    assert len(metrics.names()) >= 10
    for name in metrics.names():
        module = metrics.load(name)
        assert module.description
        assert all(f"{column}" in module.inputs_description for column in module.features)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no metric 'bleu'; there are bradley_terry"):
        metrics.load("bleu")


def test_batches_add_up_to_the_function() -> None:
    module = metrics.load("win_rate")
    module.add_batch(predictions=POLICY[:2], references=REFERENCE[:2])
    module.add_batch(predictions=POLICY[2:], references=REFERENCE[2:])
    found, expected = module.compute(), win_rate(POLICY, REFERENCE)
    assert found == {
        "win_rate": expected.estimate,
        "win_rate_low": expected.low,
        "win_rate_high": expected.high,
        "win_rate_n": 5,
        "win_rate_method": expected.method,
    }


def test_combined() -> None:
    both = evaluate.combine([metrics.load("win_rate"), metrics.load("paired_difference")])
    both.add_batch(predictions=POLICY, references=REFERENCE)
    found = both.compute()
    assert found["win_rate"] == win_rate(POLICY, REFERENCE).estimate
    assert found["paired_difference_low"] == paired_bootstrap(POLICY, REFERENCE).low
    again = both.compute(predictions=POLICY, references=REFERENCE, clusters=["p", "p", "q", "q", "r"], seed=1)
    assert (again["win_rate_n"], again["paired_difference_n"]) == (3, 3)


def test_nothing_added_is_an_error() -> None:
    module = metrics.load("win_rate")
    with pytest.raises(ValueError, match="add"):
        module.compute()
    with pytest.raises(ValueError, match="empty"):
        module.compute(predictions=[], references=[])


def test_bradley_terry() -> None:
    module = metrics.load("bradley_terry")
    module.add_batch(first=["new"] * 4, second=["base"] * 4, predictions=[1, 1, 1, 0])
    found = module.compute(reference="base")
    best = found["ratings"][0]
    assert (best["player"], best["rank"], best["win_rate"], best["games"]) == ("new", 1, 0.75, 4)
    assert best["rating"] == pytest.approx(147.190, abs=1e-3)


def test_length_controlled_win_rate() -> None:
    module = metrics.load("length_controlled_win_rate")
    found = module.compute(
        predictions=[1, 1, 1, 0, 0, 0, 0, 1], prediction_lengths=[110] * 4 + [90] * 4, reference_lengths=[100] * 8
    )
    assert found["length_controlled_win_rate"] == pytest.approx(0.5)
    assert found["raw_win_rate"] == 0.5
    assert found["warning"] is None


def test_krippendorff_alpha_with_gaps() -> None:
    judges = [[1, 2, 3, None], [1, 2, 2, 4], [None, 2, 3, 4]]
    module = metrics.load("krippendorff_alpha")
    module.add_batch(predictions=[list(unit) for unit in zip(*judges, strict=True)])
    assert module.compute(level="ordinal")["krippendorff_alpha"] == krippendorff_alpha(judges, "ordinal").estimate


def test_yes_and_no() -> None:
    a, b = [True, True, False, True], [False, True, False, False]
    found = metrics.load("mcnemar").compute(predictions=a, references=b)
    assert found["mcnemar_p"] == mcnemar(2, 0)
    assert found["proportion_difference"] == 0.5
    share = metrics.load("proportion").compute(predictions=a)
    assert (share["proportion_low"], share["proportion_high"]) == wilson(3, 4)[1:3]


def test_kappa_of_words_with_gaps() -> None:
    module = metrics.load("cohen_kappa")
    found = module.compute(predictions=["a", "b", None, "a"], references=["a", "b", "b", "b"])
    assert found["cohen_kappa_n"] == 3
    assert found["raw_agreement"] == pytest.approx(2 / 3)


def test_reply_health() -> None:
    found = metrics.load("reply_health").compute(predictions=["a b a b a", "One two. ", ""])
    assert found["length"] == pytest.approx((5 + 3 + 0) / 3)
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["distinct_2_across"] == pytest.approx(4 / 6)  # ab ba ab ba, one two, two .


def test_calibration_error_by_hand() -> None:
    """Two pairs of margin 0: certainty 1/2. Two of margin ln 9, certainty .9, one right: off by .4 in half of them."""
    module = metrics.load("calibration_error")
    ln_9 = float(np.log(9))
    found = module.compute(predictions=[0.0, 0.0, ln_9, 0.0], references=[0.0, 0.0, 0.0, ln_9])
    assert found["calibration_error"] == pytest.approx(0.2)
    assert found["brier"] == pytest.approx((0.25 + 0.25 + 0.01 + 0.81) / 4)
    assert found["calibration_error_n"] == 4
    assert found["temperature"] > 1  # it claims more than comes true
