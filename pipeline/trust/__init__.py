"""When to believe an answer: calibration, abstention, novelty."""
