"""What `python -m wspool` does."""
