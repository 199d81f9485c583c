"""Who keeps connections: `Pool` and `KeyedPool`."""
