"""The training recipes: what a run is, and the Megatron-Core program that trains it."""
