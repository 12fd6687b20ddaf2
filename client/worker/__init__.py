"""A process that stays between messages and holds a node's replica, data and device."""
