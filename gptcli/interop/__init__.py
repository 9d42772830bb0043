"""Exports and imports models: Hugging Face, llama.cpp, onnxruntime, nanoGPT."""
