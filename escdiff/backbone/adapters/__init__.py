"""What a concept brings for a frozen U-Net: LoRA, gated layers, fused words, image attention; and wider inputs."""
