"""Decisions around one pipeline: degrees of tensor parallelism, chunks, offload, replicas and pools."""
