"""The official files of each benchmark, read into rows for the harness; the standard library only."""
