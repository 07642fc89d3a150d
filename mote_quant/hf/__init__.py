"""The Hugging Face seam: the only place that knows how transformers loads, saves and trains."""
