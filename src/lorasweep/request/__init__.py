"""What was asked for, checked as a whole before anything is loaded."""
