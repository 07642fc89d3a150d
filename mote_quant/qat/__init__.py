"""Quantization-aware training: weights that are rounded in every forward, by the very function that packs them."""
