"""What every training loop uses: devices, schedules, timing and progress."""
