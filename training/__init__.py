"""Self-distillation of vision transformers: pretrain, fine-tune, evaluate; a run is a folder."""
