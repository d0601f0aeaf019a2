"""The parts of `wspool.redis`. They know no pool."""
