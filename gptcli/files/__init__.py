"""Files: durable writes (fsync, atomic rename), reads with limits, caches, shipped texts."""
