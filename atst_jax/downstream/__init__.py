"""What an exported encoder is good for: probes and scores on labelled sets."""
