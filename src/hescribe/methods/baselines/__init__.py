"""What a method must beat."""
