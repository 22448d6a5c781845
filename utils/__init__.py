"""What every other part uses: config, errors, processes, files, logs."""
