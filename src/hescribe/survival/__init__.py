"""Outcome from slides: features, penalised Cox models, attention over tiles, honest cross-validation."""
