"""`python -m llm_rlhf`, and so `accelerate launch -m llm_rlhf`."""

from llm_rlhf.cli.main import main

main()
