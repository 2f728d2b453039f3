"""Audio files to shards of log-mel clips: `python -m data_pipeline.prepare --help`."""
