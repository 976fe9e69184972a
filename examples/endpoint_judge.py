"""Which of two replies is better, by a model behind an OpenAI-compatible endpoint.

    python examples/endpoint_judge.py http://localhost:8000/v1 MODEL [KEY_VARIABLE]

KEY_VARIABLE is the name of an environment variable with the key. For the replies of two policies it is one option:

    llm-rlhf evaluate runs/hh --judge http://localhost:8000/v1#MODEL
"""

import sys

from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.evaluation.judges import EndpointJudge, Pair, compare_all


def main(url: str, model: str, key_variable: str | None = None) -> None:
    question = [{"role": "user", "content": "How do I boil an egg?"}]
    pairs = [
        Pair(question, "Eight minutes in boiling water.", "No idea.", "helpful"),
        Pair(question, "Some water, some time.", "Seven to nine minutes, then cold water.", "helpful"),
    ]
    found = compare_all(EndpointJudge(Endpoint(url, model, key_variable)), pairs)  # each pair in both orders
    for pair, probability in zip(pairs, found.probabilities, strict=True):
        print(f"{probability}  {pair.a!r} rather than {pair.b!r}")  # 0.5 is a tie, None was not judged
    print(found.counts())
    print(found.cost)


if __name__ == "__main__":
    main(*sys.argv[1:])
