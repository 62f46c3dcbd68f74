"""What is learned from: spots side by side, the gene panel, batches and their augmentation."""
