"""The parts of `wspool.testing`: the server, and its memory."""
