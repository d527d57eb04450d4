"""What every method shares: models, data, surgery, training, measurement."""

import os

# transformers announces image processors that nobody here asked for; errors are still shown.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
