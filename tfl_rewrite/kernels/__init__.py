"""What operators and runtimes take: rows with their sources, and questions to them about a model."""
