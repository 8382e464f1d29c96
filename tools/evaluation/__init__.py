"""What the evaluation scripts share: people to measure on, cached adapters, figures and tables."""
