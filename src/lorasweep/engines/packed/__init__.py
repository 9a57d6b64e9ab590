"""Packed trials: many adapters train at once on one frozen base, each as if it were alone.

Reading order: ``engine`` (the pack's loop), ``member`` (one trial under way), ``layout`` (whose
tokens lie where), ``base`` (the frozen model), ``bank`` (trained numbers and their optimizer).
Nothing is imported here: ``compat`` is asked by the plan, which does without torch.
"""
