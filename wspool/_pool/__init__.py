"""Many connections: who waits, who is served, what is dialled, drained, kept and closed."""
