"""Reading and writing files that matter: durable writes, bounded reads, caches, shipped texts."""
