"""The work of one data owner: its replica, its examples, its measurements."""
