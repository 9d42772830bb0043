"""Takes models to other programs and back: Hugging Face, llama.cpp, onnxruntime, nanoGPT."""
