"""What devices, links, clusters and runtimes are. Knows nothing of language models."""
