"""Many streams on one connection."""
