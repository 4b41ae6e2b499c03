"""The demo: a small base model made here, and one job from upload to delivery with a kill in the middle."""
