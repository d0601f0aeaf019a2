"""Many pools behind one door."""
