"""A win rate with its interval, as a metric of the `evaluate` library; no network is asked.

python examples/win_rate_metric.py
"""

from llm_rlhf.evaluation import metrics


def main() -> None:
    policy = [1.2, 0.4, 0.9, 1.1, 0.3, 0.8]  # scores of the policy's replies
    reference = [0.7, 0.4, 1.0, 0.2, 0.1, 0.5]  # of the reference's, to the same prompts
    prompts = [0, 0, 1, 1, 2, 2]  # replies to one prompt belong together

    win_rate = metrics.load("win_rate")
    win_rate.add_batch(predictions=policy, references=reference)
    for name, value in win_rate.compute(clusters=prompts).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
