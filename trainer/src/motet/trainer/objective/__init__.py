"""What a step minimises: `losses` of a batch, the softmax of the head, the diffusion of latents."""
