"""Training one run: assembled, trained, validated, resumed. Only this room uses Accelerate; it reads no test case."""
