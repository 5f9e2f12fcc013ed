"""The sampler: NVML, the host and its sensors, and what their samples say."""
