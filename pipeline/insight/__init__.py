"""Reports for people: what was learned, and what is wrong with the data."""
