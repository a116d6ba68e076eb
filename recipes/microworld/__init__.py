"""A generated bilingual world: documents to train on, and twelve benchmarks (docs/microworld.md)."""
