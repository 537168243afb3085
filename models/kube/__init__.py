"""What is read of Kubernetes objects, and by which rules; for the extender and the trainer."""
