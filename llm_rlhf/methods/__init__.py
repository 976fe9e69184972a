"""Methods beside PPO that make a policy of the start: TRL's trainers with this project's rows, rewards and files."""
