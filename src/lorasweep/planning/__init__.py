"""What a sweep will cost, before anything is loaded."""
