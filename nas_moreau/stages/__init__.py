"""What a run goes through: search, derivation, retraining, evaluation, and the main job made of them.

Modules bear the names of the stages they hold, so nothing is handed on here: the stages are names of `nas_moreau`.
"""

__all__: list[str] = []
