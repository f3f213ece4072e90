"""What every room stands on: errors, outputs, hashes of what made them, plugins, progress, devices."""
