"""One connection: its states, its wire, its place in a pool, and the loan that a borrower holds."""
