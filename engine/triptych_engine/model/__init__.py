"""Models: what a folder says (`config`, `generation`, `tensors`, without torch) and the decoder that computes it."""
