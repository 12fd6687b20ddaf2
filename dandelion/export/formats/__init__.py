"""The forms in which a model leaves: a folder of safetensors, adapters, or a GGUF file."""
