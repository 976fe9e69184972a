"""Who says which of two replies is better: a reward model, a language model here or behind a URL, or people.

protocol.py    the rules that every judge is held to (both orders, flips, failures, cost, identity)
prompts.py     what a language model is asked and how its answer is read
reward.py      RewardJudge     scores of a reward model
local.py       LocalJudge      log-probabilities of a causal language model
remote.py      EndpointJudge   an OpenAI-compatible endpoint
people.py      StoredJudge     verdicts of people from a file
naming.py      the judge that a recipe or the command line names, and its account of two policies
"""

from llm_rlhf.evaluation.judges.local import LocalJudge, model_identity, weight_digests
from llm_rlhf.evaluation.judges.people import StoredJudge
from llm_rlhf.evaluation.judges.protocol import (
    Comparisons,
    Cost,
    Grades,
    Judge,
    Judged,
    JudgeError,
    Pair,
    Reading,
    Response,
    check_not_itself,
    compare,
    compare_all,
    grade,
    grade_all,
)
from llm_rlhf.evaluation.judges.remote import EndpointJudge
from llm_rlhf.evaluation.judges.reward import RewardJudge

__all__ = [
    "Comparisons",
    "Cost",
    "EndpointJudge",
    "Grades",
    "Judge",
    "JudgeError",
    "Judged",
    "LocalJudge",
    "Pair",
    "Reading",
    "Response",
    "RewardJudge",
    "StoredJudge",
    "check_not_itself",
    "compare",
    "compare_all",
    "grade",
    "grade_all",
    "model_identity",
    "weight_digests",
]
