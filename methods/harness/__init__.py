"""What every method shares: pipelines, data, surgery, training, measuring, results."""
