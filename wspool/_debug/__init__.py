"""The parts of `wspool.debug`: what is measured, what is shown, and whom it is shown to."""
