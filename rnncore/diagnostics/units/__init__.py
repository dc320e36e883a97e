"""Units: what states and weights are like: saturation, statistics, initialisation."""
