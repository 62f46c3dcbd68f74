"""What can be fitted: penalised Cox regression on features, attention over tiles."""
