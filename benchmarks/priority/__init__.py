"""``priority``: who starts when, while bulk work keeps the slots busy.

``starts`` measures the start of urgent calls beside a bulk backlog, ours and stock's; ``shares``
the slot time by weight and the longest wait of the lightest queue; ``lending`` what a reserve costs
and how soon it is back; ``siblings`` whether a task waits while another worker is idle. ``study``
puts them together.
"""
