"""{-1, 0, +1}: quantizer, straight-through estimator, int8 activations, packing: pure functions and a linear layer."""
