"""Models in Hugging Face form."""
