"""Text in, token ids on disk out: documents, SentencePiece training, Megatron's indexed format.

The first room of the flow also holds what every later room shares: `cli` (errors, exit codes, progress)
and `files` (atomic writing, checksums).
"""
