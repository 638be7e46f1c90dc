"""Training: windows of bars, settings to RLlib's ``AlgorithmConfig``, callbacks that publish events, the loop."""
