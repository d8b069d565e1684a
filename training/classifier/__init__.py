"""Image classifiers on a DINO backbone: linear, LoRA and full fine-tuning."""
