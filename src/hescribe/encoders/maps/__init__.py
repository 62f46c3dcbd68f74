"""What an encoder gives before pooling: tokens, and maps of what it attends to."""
