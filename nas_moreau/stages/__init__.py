"""What a run goes through: search, derivation, retraining, evaluation, and the main job made of them."""
