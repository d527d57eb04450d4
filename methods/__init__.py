"""Reference implementations: one file per published technique, one shared harness."""
