"""PPO from human feedback: objectives (the mathematics), trainer (the loop), guards (what stops it)."""
