"""The measured process, the home of torch. Started by module name, never imported."""
