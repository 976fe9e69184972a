"""What a recipe would take, told before it runs: rows, steps, tokens, memory, disk. No weights are loaded."""
