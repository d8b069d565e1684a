"""DINO self-distillation: student and EMA teacher, multi-crop, the DINO, iBOT and KoLeo losses, collapse checks."""
