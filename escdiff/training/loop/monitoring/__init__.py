"""What a run says of itself: means, speed, validation, loggers, and the watch over its processes."""
