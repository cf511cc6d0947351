"""Automatic constants of the Moreau-envelope method: `measured` for small problems, `tracked` for networks."""
