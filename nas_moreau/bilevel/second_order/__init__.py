"""Second-order finish: lower level solved exactly, implicit hypergradient, quasi-Newton steps of x, a certificate."""

__all__: list[str] = []
