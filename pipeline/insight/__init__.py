"""What was learned, and what is wrong with the data: made to be looked at."""
