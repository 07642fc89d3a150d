"""{-1, 0, +1} and {-1, +1}: quantizer, int8 activations, packing: pure functions."""
