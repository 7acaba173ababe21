"""The parts of the simulated executor: its language model, its sampling, its sense of time."""
