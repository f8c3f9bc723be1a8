"""Pictures to codes or latents and back."""
