"""A worker is a process that stays between messages, with a node's replica, data and device."""
