"""The coefficient of the KL penalty: fixed, or steered to a target."""


class KLController:
    """Ziegler et al. 2019 (arXiv:1909.08593), section 2.2: beta *= 1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon.

    Args:
        kl_coef: beta at the start.
        target: mean KL to the reference, in nats per response; None keeps beta fixed.
        horizon: responses over which beta adapts.
    """

    def __init__(self, kl_coef: float, target: float | None, horizon: int) -> None:
        self.value, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean KL of a rollout of `episodes` responses (over all processes)."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * episodes / self.horizon
