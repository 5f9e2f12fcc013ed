"""What every part uses: errors, text, units, statistics, limits, the environment."""
