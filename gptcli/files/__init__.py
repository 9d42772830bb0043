"""Files: durable writes (fsync, atomic rename), bounded reads, caches, shipped texts."""
