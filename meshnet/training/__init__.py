"""One run: assembled, trained, validated, resumed. Accelerate is used here alone, and no test case is read."""
