"""Token caches and what training reads of them: shards, sequences, batches in a fixed order."""
