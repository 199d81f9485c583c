"""Other people's libraries on trionet's streams; one module each, imported by whoever asks."""
