"""Search: spend evaluations on finding a better picture instead of making one."""
