"""From typed words to trials."""
