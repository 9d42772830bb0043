"""Takes trained models to other programs: Hugging Face, llama.cpp, onnxruntime."""
